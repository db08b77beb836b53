/* An echo server that is linked with libtcpr: its connections survive the death of the process or the machine.
 *
 * usage: echo_server PORT [ADDRESS]
 * Run it by `tcpr run`; or by itself, then it hosts the manager as a thread (TCPR_CONFIG names the configuration).
 *
 * All bytes that a client sends are sent back. The server reads from a connection only when everything that it
 * read before has been sent back. So input is answered before more is read, and tcpr knows by the answers which
 * input is done: the program needs no tcpr_consume.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <tcpr.h>

#include "common.h"

struct client {
    int fd;
    size_t start, end;          /* bytes start..end of data are still to be sent back */
    char data[32 << 10];
};

static int epfd;

static void drop(struct client *c)
{
    tcpr_close(c->fd);
    free(c);
}

static void watch(struct client *c, uint32_t events)
{
    struct epoll_event ev = { .events = events, .data.ptr = c };

    if (epoll_ctl(epfd, EPOLL_CTL_MOD, c->fd, &ev) < 0)
        die("epoll_ctl");
}

/* 1: all is sent back; 0: the kernel takes no more for now; -1: the connection is broken. */
static int answer(struct client *c)
{
    while (c->start < c->end) {
        ssize_t n = tcpr_write(c->fd, c->data + c->start, c->end - c->start);

        if (n >= 0)
            c->start += (size_t)n;
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            return 0;
        else if (errno != EINTR)
            return -1;
    }
    c->start = c->end = 0;
    return 1;
}

static void serve(struct client *c, uint32_t events)
{
    ssize_t n;

    if (c->start < c->end) {
        int r = answer(c);

        if (r < 0 || (r == 0 && (events & (EPOLLERR | EPOLLHUP))))
            drop(c);
        else if (r > 0)
            watch(c, EPOLLIN);
        return;
    }
    n = tcpr_read(c->fd, c->data, sizeof c->data);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return;
    if (n <= 0) {
        drop(c);
        return;
    }
    c->end = (size_t)n;
    switch (answer(c)) {
    case -1:
        drop(c);
        break;
    case 0:
        watch(c, EPOLLOUT);
        break;
    }
}

static void welcome(int listener)
{
    for (;;) {
        struct epoll_event ev = { .events = EPOLLIN };
        struct client *c;
        int one = 1;
        int fd = tcpr_accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno != EAGAIN && errno != EWOULDBLOCK)
                perror("accept");
            return;
        }
        tcpr_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        c = malloc(sizeof *c);
        if (c == NULL)
            die("malloc");
        c->fd = fd;
        c->start = c->end = 0;
        ev.data.ptr = c;
        if (epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) < 0)
            die("epoll_ctl");
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_storage addr;
    struct epoll_event events[64], ev = { .events = EPOLLIN };
    socklen_t length = address_of(argc, argv, &addr);
    int listener;

    signal(SIGPIPE, SIG_IGN);
    listener = tcpr_listen_on(&addr, length);
    epfd = epoll_create1(EPOLL_CLOEXEC);
    if (epfd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, listener, &ev) < 0)
        die("epoll");

    for (;;) {
        int i, n = tcpr_epoll_wait(epfd, events, 64, -1);

        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (i = 0; i < n; i++) {
            if (events[i].data.ptr == NULL)
                welcome(listener);
            else
                serve(events[i].data.ptr, events[i].events);
        }
    }
}
