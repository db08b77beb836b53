/* event_loop PORT WAY: an event loop that does not answer at once.
 *
 *   proxy   gives each line to an upstream, over one connection that is no session, and each reply to the client that
 *           asked. The upstream is a thread of this process: it waits a moment, and replies with the same line. The loop
 *           sleeps before it waits, so that one wait finds requests and replies: it takes the requests first.
 *   relay   the same; the upstream replies in two parts
 *   parts   answers each line "N\n" with N lines, one each five milliseconds, by a timer
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

static void die(const char *what)
{
    perror(what);
    exit(1);
}

struct line {
    int fd;
    uint32_t serial;
    uint32_t length;
    char bytes[4096];
};

static uint32_t serials[4096];

/* What has come of a line on a client's connection. */
static struct line coming[4096];
/* What is to be said on it still, and what was. */
static unsigned parts_left[4096], parts_said[4096];

static void read_all(int fd, void *to, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t got = read(fd, (char *)to + at, n - at);
        if (got <= 0)
            pthread_exit(NULL);
        at += (size_t)got;
    }
}

static void write_all(int fd, const void *from, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t put = write(fd, (const char *)from + at, n - at);
        if (put <= 0)
            return;
        at += (size_t)put;
    }
}

/* The upstream's end: what comes is said again, in two parts. */
static int relay;

static void *upstream(void *argument)
{
    int fd = (int)(long)argument;
    static struct line l;
    for (;;) {
        read_all(fd, &l, offsetof(struct line, bytes));
        read_all(fd, l.bytes, l.length);
        usleep((unsigned)(l.length * 37 % 5000));
        struct line first = l;
        first.length = relay ? l.length / 2 : l.length;
        write_all(fd, &first, offsetof(struct line, bytes) + first.length);
        if (!relay)
            continue;
        usleep((unsigned)(l.length * 91 % 5000));
        memmove(l.bytes, l.bytes + first.length, l.length - first.length);
        l.length -= first.length;
        write_all(fd, &l, offsetof(struct line, bytes) + l.length);
    }
    return NULL;
}

static int ep;

static void watch(int fd)
{
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) < 0)
        die("epoll_ctl");
}

/* Takes the next line that asks for so many. */
static void take_next(int fd)
{
    struct line *l = &coming[fd];
    char *end = memchr(l->bytes, '\n', l->length);
    if (parts_left[fd] > 0 || !end)
        return;
    parts_left[fd] = (unsigned)atoi(l->bytes);
    parts_said[fd] = 0;
    l->length -= (uint32_t)(end + 1 - l->bytes);
    memmove(l->bytes, end + 1, l->length);
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: event_loop PORT proxy|relay|parts\n");
        return 2;
    }
    int parts = strcmp(argv[2], "parts") == 0;
    relay = strcmp(argv[2], "relay") == 0;
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET6, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)atoi(argv[1]))};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 64) < 0)
        die("listen");
    ep = epoll_create1(0);
    watch(listener);
    int up[2] = {-1, -1}, timer = -1;
    if (parts) {
        timer = timerfd_create(CLOCK_MONOTONIC, 0);
        struct itimerspec each = {{0, 5000000}, {0, 5000000}};
        timerfd_settime(timer, 0, &each, NULL);
        watch(timer);
    } else {
        pthread_t t;
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, up) < 0 || pthread_create(&t, NULL, upstream, (void *)(long)up[1]) != 0)
            die("upstream");
        watch(up[0]);
    }
    for (;;) {
        struct epoll_event events[64];
        if (!parts)
            usleep(3000);
        int n = epoll_wait(ep, events, 64, -1);
        /* Clients first: what they ask is away before a reply is passed on. */
        for (int pass = 0; pass < 2; pass++)
            for (int i = 0; i < n; i++) {
                int fd = events[i].data.fd, late = fd == up[0] || fd == timer;
                if (late != pass)
                    continue;
                if (fd == listener) {
                    int c = accept(listener, NULL, NULL);
                    if (c < 0)
                        continue;
                    coming[c].length = 0;
                    parts_left[c] = parts_said[c] = 0;
                    serials[c]++;
                    watch(c);
                } else if (fd == timer) {
                    uint64_t ticks;
                    read_all(timer, &ticks, sizeof ticks);
                    for (int c = 0; c < 4096; c++)
                        if (parts_left[c] > 0) {
                            char line[40];
                            int length = snprintf(line, sizeof line, "%u\n", ++parts_said[c]);
                            parts_left[c]--;
                            write_all(c, line, (size_t)length);
                            take_next(c);
                        }
                } else if (fd == up[0]) {
                    static struct line l;
                    read_all(fd, &l, offsetof(struct line, bytes));
                    read_all(fd, l.bytes, l.length);
                    if (l.serial == serials[l.fd])
                        write_all(l.fd, l.bytes, l.length);
                } else {
                    struct line *l = &coming[fd];
                    ssize_t got = read(fd, l->bytes + l->length, sizeof l->bytes - l->length);
                    if (got <= 0) {
                        serials[fd]++;
                        parts_left[fd] = 0;
                        close(fd);
                        continue;
                    }
                    l->length += (uint32_t)got;
                    if (parts) {
                        take_next(fd);
                        continue;
                    }
                    if (l->bytes[l->length - 1] != '\n')
                        continue;
                    l->fd = fd;
                    l->serial = serials[fd];
                    write_all(up[0], l, offsetof(struct line, bytes) + l->length);
                    l->length = 0;
                }
            }
    }
}
