/* What `tcpr bench` measures: three services in one ordinary program, which knows nothing of tcpr.
 *
 * usage: traffic_server PORT [WORKERS MOST]
 *
 * PORT echoes; PORT + 1 takes bytes and says nothing; PORT + 2 is asked for so many bytes (64 bits, little-endian),
 * sends them, and is asked again. So many workers, of which each serves so many connections at most.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum mode { ECHO, SINK, SOURCE, MODES };

struct client {
    int fd;
    enum mode mode;
    size_t start, end;          /* of an echo: bytes start..end of its data are still to be sent back */
    uint64_t due;               /* of a source: so many are still to be sent */
    char *data;                 /* of an echo that had to stop */
};

static int epfd;
static struct client listeners[MODES];
static long most, serving;
static char block[256 << 10];

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void listen_again(int op)
{
    int i;

    for (i = 0; i < MODES; i++) {
        struct epoll_event ev = { .events = EPOLLIN, .data.ptr = &listeners[i] };

        if (epoll_ctl(epfd, op, listeners[i].fd, &ev) < 0)
            die("epoll_ctl");
    }
}

static void drop(struct client *c)
{
    close(c->fd);
    free(c->data);
    free(c);
    if (serving-- == most)
        listen_again(EPOLL_CTL_ADD);
}

static void watch(struct client *c, uint32_t events)
{
    struct epoll_event ev = { .events = events, .data.ptr = c };

    if (epoll_ctl(epfd, EPOLL_CTL_MOD, c->fd, &ev) < 0)
        die("epoll_ctl");
}

/* Sends n bytes; how many the kernel took, or -1 when the connection is broken. */
static ssize_t put(int fd, const char *data, size_t n)
{
    size_t sent = 0;

    while (sent < n) {
        ssize_t r = write(fd, data + sent, n - sent);

        if (r >= 0)
            sent += (size_t)r;
        else if (errno == EAGAIN)
            break;
        else if (errno != EINTR)
            return -1;
    }
    return (ssize_t)sent;
}

/* Sends what is due: 1 all, 0 the kernel takes no more for now, -1 broken. */
static int answer(struct client *c)
{
    ssize_t n;

    while (c->due > 0) {
        size_t part = c->due < sizeof block ? (size_t)c->due : sizeof block;

        n = put(c->fd, block, part);
        if (n < 0)
            return -1;
        c->due -= (uint64_t)n;
        if ((size_t)n < part)
            return 0;
    }
    if (c->start < c->end) {
        n = put(c->fd, c->data + c->start, c->end - c->start);
        if (n < 0)
            return -1;
        c->start += (size_t)n;
        if (c->start < c->end)
            return 0;
        free(c->data);
        c->data = NULL;
        c->start = c->end = 0;
    }
    return 1;
}

static void serve(struct client *c)
{
    ssize_t n, sent;

    if (c->due > 0 || c->start < c->end) {
        switch (answer(c)) {
        case -1:
            drop(c);
            break;
        case 1:
            watch(c, EPOLLIN);
        }
        return;
    }
    n = read(c->fd, block, c->mode == SOURCE ? sizeof c->due : sizeof block);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    /* A request comes in one segment. */
    if (n <= 0 || (c->mode == SOURCE && n != sizeof c->due)) {
        drop(c);
        return;
    }
    if (c->mode == SINK)
        return;
    if (c->mode == SOURCE) {
        memcpy(&c->due, block, sizeof c->due);
    } else {
        sent = put(c->fd, block, (size_t)n);
        if (sent < 0) {
            drop(c);
            return;
        }
        if (sent < n) {
            c->end = (size_t)(n - sent);
            c->data = malloc(c->end);
            if (c->data == NULL)
                die("malloc");
            memcpy(c->data, block + sent, c->end);
        }
    }
    switch (answer(c)) {
    case -1:
        drop(c);
        break;
    case 0:
        watch(c, EPOLLOUT);
    }
}

static void welcome(struct client *listener)
{
    while (serving < most) {
        struct epoll_event ev = { .events = EPOLLIN };
        struct client *c;
        int one = 1;
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno != EAGAIN)
                perror("accept");
            return;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c = calloc(1, sizeof *c);
        if (c == NULL)
            die("calloc");
        c->fd = fd;
        c->mode = listener->mode;
        ev.data.ptr = c;
        if (epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) < 0)
            die("epoll_ctl");
        if (++serving == most)
            listen_again(EPOLL_CTL_DEL);
    }
}

int main(int argc, char **argv)
{
    struct epoll_event events[64];
    int i, n, one = 1, port = argc > 1 ? atoi(argv[1]) : 0;
    int workers = argc == 4 ? atoi(argv[2]) : 1;

    most = argc == 4 ? atol(argv[3]) : LONG_MAX;
    if (argc == 3 || argc > 4 || port <= 0 || port > 65535 - MODES || workers < 1 || most < 1) {
        fprintf(stderr, "usage: traffic_server PORT [WORKERS MOST]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    for (i = 0; i < MODES; i++) {
        struct sockaddr_in addr = { .sin_family = AF_INET, .sin_port = htons((uint16_t)(port + i)) };
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

        if (fd < 0)
            die("socket");
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0)
            die("bind");
        if (listen(fd, SOMAXCONN) < 0)
            die("listen");
        listeners[i].fd = fd;
        listeners[i].mode = (enum mode)i;
    }
    while (--workers > 0) {
        pid_t child = fork();

        if (child < 0)
            die("fork");
        if (child == 0) {
            /* Not without the others. */
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            break;
        }
    }
    epfd = epoll_create1(EPOLL_CLOEXEC);
    if (epfd < 0)
        die("epoll_create1");
    listen_again(EPOLL_CTL_ADD);
    for (;;) {
        n = epoll_wait(epfd, events, 64, -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;

            if (c >= listeners && c < listeners + MODES)
                welcome(c);
            else
                serve(c);
        }
    }
}
