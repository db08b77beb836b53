/* splice_server PORT ADDRESS echo|DIRECTORY [raw]: sends back what comes, by splice(2) through a pipe of each connection; or puts
 * it into a file in DIRECTORY that has the peer's port for its name, and answers its length at its end. "raw": by system calls
 * that no library sees. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

struct client {
    int fd, to, pipe[2];
    size_t inside;      /* bytes in the pipe */
    long all;
};

static int epfd, raw;

static long move(int from, int to, size_t n)
{
#ifdef __x86_64__
    if (raw) {
        long result;
        register long r10 __asm__("r10") = 0;
        register long r8 __asm__("r8") = (long)n;
        register long r9 __asm__("r9") = SPLICE_F_NONBLOCK;
        __asm__ volatile("syscall"
                         : "=a"(result)
                         : "a"(SYS_splice), "D"((long)from), "S"(0L), "d"((long)to), "r"(r10), "r"(r8), "r"(r9)
                         : "rcx", "r11", "memory");
        if (result >= 0)
            return result;
        errno = (int)-result;
        return -1;
    }
#endif
    return splice(from, NULL, to, NULL, n, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
}

static void watch(struct client *c, uint32_t events)
{
    epoll_ctl(epfd, EPOLL_CTL_MOD, c->fd, &(struct epoll_event){.events = events, .data.ptr = c});
}

static void drop(struct client *c)
{
    close(c->fd);
    close(c->pipe[0]);
    close(c->pipe[1]);
    if (c->to >= 0)
        close(c->to);
    free(c);
}

static void serve(struct client *c)
{
    for (;;) {
        while (c->inside > 0) {
            long n = move(c->pipe[0], c->to >= 0 ? c->to : c->fd, c->inside);
            if (n < 0 && errno == EAGAIN)
                return watch(c, EPOLLOUT);
            if (n <= 0)
                return drop(c);
            c->inside -= (size_t)n;
        }
        long n = move(c->fd, c->pipe[1], 65536);
        if (n < 0 && errno == EAGAIN)
            return watch(c, EPOLLIN);
        if (n == 0 && c->to >= 0) {
            char answer[32];
            int length = snprintf(answer, sizeof answer, "%ld\n", c->all);
            if (write(c->fd, answer, (size_t)length) != length)
                perror("write");
        }
        if (n <= 0)
            return drop(c);
        c->inside = (size_t)n;
        c->all += n;
    }
}

static int file_of(const char *directory, const struct sockaddr_in6 *peer)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%u", directory, ntohs(peer->sin6_port));
    int fd = open(path, O_WRONLY | O_CREAT, 0644);
    lseek(fd, 0, SEEK_END);
    return fd;
}

int main(int argc, char **argv)
{
    if (argc != 4 && argc != 5)
        return 2;
    raw = argc == 5;
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_port = htons((unsigned short)atoi(argv[1]))};
    int one = 1, listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (inet_pton(AF_INET6, argv[2], &here.sin6_addr) != 1 || bind(listener, (struct sockaddr *)&here, sizeof here) < 0 ||
        listen(listener, 64) < 0)
        return 1;
    epfd = epoll_create1(0);
    epoll_ctl(epfd, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN});
    for (;;) {
        struct epoll_event events[16];
        int n = epoll_wait(epfd, events, 16, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr != NULL) {
                serve(events[i].data.ptr);
                continue;
            }
            struct sockaddr_in6 peer;
            socklen_t length = sizeof peer;
            int fd = accept4(listener, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK);
            struct client *c = calloc(1, sizeof *c);
            if (fd < 0 || c == NULL || pipe(c->pipe) < 0) {
                free(c);
                continue;
            }
            c->fd = fd;
            c->to = strcmp(argv[3], "echo") == 0 ? -1 : file_of(argv[3], &peer);
            epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c});
        }
    }
}
