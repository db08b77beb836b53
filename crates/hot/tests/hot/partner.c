/* What libtcpr.so does for libtcpr_hot.so, made small for a test: the trace's memory is a file, every TCP connection is
 * protected, and at a promotion each socket is fetched from the leader's process, which is stopped.
 *
 * PARTNER_MEMORY names the file; PARTNER_LEADER a file with the leader's process id. Where there were snapshots, there is a file
 * with ".snapshots" behind the name of the memory.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

struct tcpr_hot_connection {
    int32_t fd;
    uint32_t state;
    uint64_t read, written, since;
    const uint8_t *tail;
    uint64_t tail_len;
    uint8_t tuple[40];
};

int tcpr_hot_memory(void);
int tcpr_hot_session(int fd, uint8_t tuple[56]);
int tcpr_hot_stand(struct tcpr_hot_connection *list, size_t n);

int tcpr_hot_memory(void)
{
    const char *path = getenv("PARTNER_MEMORY");
    /* The follower takes the leader's sockets. */
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    return path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
}

/* As FourTuple::to_bytes, on a little-endian machine; nothing was there before. */
int tcpr_hot_session(int fd, uint8_t tuple[56])
{
    struct sockaddr_in local = {0}, peer = {0};
    socklen_t l = sizeof local, p = sizeof peer;
    if (getsockname(fd, (struct sockaddr *)&local, &l) < 0 || getpeername(fd, (struct sockaddr *)&peer, &p) < 0 ||
        local.sin_family != AF_INET)
        return 0;
    memset(tuple, 0, 56);
    uint16_t ports[2] = {ntohs(local.sin_port), ntohs(peer.sin_port)};
    tuple[0] = 4;
    memcpy(tuple + 2, ports, sizeof ports);
    memcpy(tuple + 8, &local.sin_addr, 4);
    memcpy(tuple + 24, &peer.sin_addr, 4);
    return 1;
}

int tcpr_hot_stand(struct tcpr_hot_connection *list, size_t n)
{
    const char *path = getenv("PARTNER_LEADER");
    char text[32] = {0};
    int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY);
    if (file < 0 || syscall(SYS_read, file, text, sizeof text - 1) <= 0)
        return -1;
    syscall(SYS_close, file);
    int leader = (int)syscall(SYS_pidfd_open, atoi(text), 0);
    char snapshots[4096];
    snprintf(snapshots, sizeof snapshots, "%s.snapshots", getenv("PARTNER_MEMORY"));
    int from_snapshot = access(snapshots, F_OK) == 0;
    for (size_t i = 0; i < n; i++) {
        int number = list[i].fd, ended = list[i].state == 1;
        list[i].state = 0;
        if (number < 0)
            continue;
        /* The end of the output is there, as much as is kept. What was written before a snapshot is not. */
        if (ended || list[i].tail_len > list[i].written || (list[i].written > 0 && list[i].tail_len == 0 && !from_snapshot))
            return -1;
        int fd = (int)syscall(SYS_pidfd_getfd, leader, number, 0);
        uint8_t tuple[56];
        if (fd < 0 || !tcpr_hot_session(fd, tuple) || memcmp(tuple, list[i].tuple, 40) != 0)
            continue;
        int cloexec = fcntl(number, F_GETFD) & FD_CLOEXEC;
        syscall(SYS_dup3, fd, number, cloexec ? O_CLOEXEC : 0);
        syscall(SYS_close, fd);
        list[i].state = 1;
    }
    syscall(SYS_close, leader);
    return 0;
}

/* Both listen on this host. */
int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    int on = 1;
    int (*next)(int, const struct sockaddr *, socklen_t) = (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "bind");
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    return next(fd, address, length);
}

/* Whoever gives up being root still lets its sockets be fetched. */
int setuid(uid_t id)
{
    int (*next)(uid_t) = (int (*)(uid_t))dlsym(RTLD_NEXT, "setuid");
    int result = next(id);
    prctl(PR_SET_DUMPABLE, 1);
    return result;
}
