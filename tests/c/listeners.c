/* listeners PORT WAY: answers each line with "PID line", where the listener came to its process in one of these ways:
 *
 *   poll       a worker that was forked accepts what poll says, and forks for each connection
 *   workers    four workers wait on one listener with EPOLLEXCLUSIVE, and accept one connection for each event
 *   herd       the same, and all are woken by each
 *   reuseport  four workers have a listener each (SO_REUSEPORT)
 *   et         a wait that is edge-triggered, and one accept for each event
 *   etfork     the same, and a process for each connection
 *   exec       bound by what became this program, which has it as descriptor 9
 *   activate   the same, as systemd does it: LISTEN_FDS, descriptor 3
 *   scm        bound by another process, which passes it in a message
 *   raw        bound and told to listen by system calls that no library sees
 *   mptcp      a Multipath TCP socket
 *   uring      accepted by io_uring; the rest is the C library's, in a process for each connection
 *   deaf       listens, and never accepts
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* A system call of our own. */
static long call(long number, long a, long b, long c, long d, long e, long f)
{
#ifdef __x86_64__
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return result;
#else
    return syscall(number, a, b, c, d, e, f);
#endif
}

static int listener(int port, int protocol, int share, int raw)
{
    int fd = socket(AF_INET6, SOCK_STREAM, protocol), on = 1;
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
    if (fd < 0)
        die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (share)
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    if (raw) {
        if (call(SYS_bind, fd, (long)&at, sizeof at, 0, 0, 0) < 0 || call(SYS_listen, fd, 64, 0, 0, 0, 0) < 0)
            die("raw");
    } else if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0 || listen(fd, 64) < 0)
        die("listen");
    return fd;
}

/* What has come of a line. */
struct buffer {
    size_t length;
    char bytes[4096];
};

static struct buffer *buffers[65536];

/* Answers the lines that are whole. Returns 0 at the end. */
static int answer(int fd)
{
    struct buffer *b = buffers[fd] ? buffers[fd] : (buffers[fd] = calloc(1, sizeof *b));
    ssize_t n = read(fd, b->bytes + b->length, sizeof b->bytes - b->length);
    if (n <= 0)
        return n < 0 && errno == EAGAIN;
    b->length += (size_t)n;
    char *end;
    while ((end = memchr(b->bytes, '\n', b->length))) {
        char line[5000];
        size_t length = (size_t)(end + 1 - b->bytes);
        int said = sprintf(line, "%d %.*s", (int)getpid(), (int)length, b->bytes);
        if (write(fd, line, (size_t)said) != said)
            return 0;
        b->length -= length;
        memmove(b->bytes, end + 1, b->length);
    }
    return b->length < sizeof b->bytes;
}

static void hang_up(int fd)
{
    free(buffers[fd]);
    buffers[fd] = NULL;
    close(fd);
}

/* A process for this connection. */
static void fork_for(int fd)
{
    if (fd < 0)
        return;
    if (fork() == 0) {
        while (answer(fd))
            ;
        _exit(0);
    }
    close(fd);
}

static void serve(int listener, uint32_t how, int forks)
{
    int ep = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN | how, .data.fd = listener};
    fcntl(listener, F_SETFL, O_NONBLOCK);
    if (epoll_ctl(ep, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll_ctl");
    for (;;) {
        if (epoll_wait(ep, &event, 1, -1) <= 0)
            continue;
        int fd = event.data.fd;
        if (fd != listener) {
            if (!answer(fd))
                hang_up(fd);
            continue;
        }
        fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        if (forks) {
            fork_for(fd);
            continue;
        }
        event.events = EPOLLIN;
        event.data.fd = fd;
        epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event);
    }
}

static void accept_and_fork(int listener)
{
    struct pollfd waits = {.fd = listener, .events = POLLIN};
    for (;;) {
        poll(&waits, 1, -1);
        fork_for(accept(listener, NULL, NULL));
    }
}

/* What another process has bound. */
static int passed(int port)
{
    int pair[2], fd = -1;
    char byte = 0;
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
        die("socketpair");
    if (fork() == 0) {
        fd = listener(port, 0, 0, 0);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
        _exit(sendmsg(pair[0], &message, 0) != 1);
    }
    if (recvmsg(pair[1], &message, 0) != 1 || !CMSG_FIRSTHDR(&message))
        die("recvmsg");
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

static void accept_by_ring(int listener)
{
    struct io_uring_params p = {0};
    int ring = (int)syscall(SYS_io_uring_setup, 4, &p);
    if (ring < 0)
        die("io_uring_setup");
    size_t size = p.sq_off.array + p.sq_entries * sizeof(uint32_t), completions = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    char *sq = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    char *cq = mmap(NULL, completions, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
    struct io_uring_sqe *sqes = mmap(NULL, p.sq_entries * sizeof *sqes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
    uint32_t *tail = (uint32_t *)(void *)(sq + p.sq_off.tail), *array = (uint32_t *)(void *)(sq + p.sq_off.array);
    uint32_t *head = (uint32_t *)(void *)(cq + p.cq_off.head), *end = (uint32_t *)(void *)(cq + p.cq_off.tail);
    struct io_uring_cqe *results = (struct io_uring_cqe *)(void *)(cq + p.cq_off.cqes);
    for (;;) {
        uint32_t at = *tail & (p.sq_entries - 1);
        memset(&sqes[at], 0, sizeof sqes[at]);
        sqes[at].opcode = IORING_OP_ACCEPT;
        sqes[at].fd = listener;
        array[at] = at;
        __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
        syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
        while (*head != __atomic_load_n(end, __ATOMIC_ACQUIRE)) {
            int fd = results[*head & (p.cq_entries - 1)].res;
            __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
            fork_for(fd);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: listeners PORT WAY\n");
        return 2;
    }
    int port = atoi(argv[1]), workers = 0;
    const char *way = argv[2];
#define IS(name) (strcmp(way, name) == 0)
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_IGN);
    if (IS("exec") || IS("activate")) {
        int fd = IS("exec") ? 9 : 3;
        if (argc == 3) {
            char pid[20];
            sprintf(pid, "%d", (int)getpid());
            setenv("LISTEN_FDS", "1", 1);
            setenv("LISTEN_PID", pid, 1);
            int was = listener(port, 0, 0, 0);
            if (was != fd && (dup2(was, fd) < 0 || close(was) < 0))
                die("dup2");
            execl("/proc/self/exe", argv[0], argv[1], way, "again", NULL);
            die("execl");
        }
        if (IS("exec"))
            accept_and_fork(fd);
        serve(fd, 0, 0);
    }
    if (IS("workers") || IS("herd") || IS("reuseport")) {
        int share = IS("reuseport"), fd = listener(port, 0, share, 0);
        for (workers = 0; workers < 3; workers++)
            if (fork() == 0) {
                if (share) {
                    close(fd);
                    fd = listener(port, 0, 1, 0);
                }
                break;
            }
        serve(fd, IS("workers") ? EPOLLEXCLUSIVE : 0, 0);
    }
    if (IS("deaf")) {
        listener(port, 0, 0, 0);
        for (;;)
            pause();
    }
    int fd = IS("scm") ? passed(port) : listener(port, IS("mptcp") ? IPPROTO_MPTCP : 0, 0, IS("raw"));
    if (IS("poll") && fork() != 0)
        for (;;)
            pause();
    if (IS("uring"))
        accept_by_ring(fd);
    if (IS("et") || IS("etfork"))
        serve(fd, EPOLLET, IS("etfork"));
    accept_and_fork(fd);
}
