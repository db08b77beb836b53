/* caller PORT UPSTREAM UPSTREAM_PORT COUNT blocking|poll|ports|greet [ADDRESS]: a program that connects. It keeps COUNT
 * connections to an upstream: one that polls makes all of them to one port, in order; else the i-th goes to the i-th port
 * from there, for nobody could tell which thread's is the first. It sends back every line that the upstream says; it does the
 * same for whoever connects to PORT. One that greets says hello when it has connected. With ADDRESS it binds its sockets to that first, as a program does that
 * no library helps, and to the same COUNT ports each time it runs, but not in the same order: one that comes back has the port
 * that another one had. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ROOM = 1 << 16, MOST = 256 };

static struct sockaddr_storage upstream, from;
static socklen_t upstream_size, from_size;
static int nonblocking, greets, own_ports, count;

static socklen_t resolve(const char *host, const char *port, struct sockaddr_storage *to)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)to;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)to;
    if (inet_pton(AF_INET, host, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons((uint16_t)atoi(port));
        return sizeof *v4;
    }
    if (inet_pton(AF_INET6, host, &v6->sin6_addr) == 1) {
        v6->sin6_family = AF_INET6;
        v6->sin6_port = htons((uint16_t)atoi(port));
        return sizeof *v6;
    }
    fprintf(stderr, "%s: no address\n", host);
    exit(2);
}

/* Binds to the address, and to a port of the i-th connection's for now. */
static int take_port(int fd, int i)
{
    struct sockaddr_storage at = from;
    uint16_t port = htons((uint16_t)(20000 + (i + getpid()) % count));
    int on = 1;
    if (at.ss_family == AF_INET)
        ((struct sockaddr_in *)&at)->sin_port = port;
    else
        ((struct sockaddr_in6 *)&at)->sin6_port = port;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    return bind(fd, (struct sockaddr *)&at, from_size);
}

/* The i-th socket, which is connected or connects; -1: not now. */
static int call(int i)
{
    int fd = socket(upstream.ss_family, SOCK_STREAM | (nonblocking ? SOCK_NONBLOCK : 0), 0);
    if (fd < 0) {
        perror("socket");
        exit(1);
    }
    struct sockaddr_storage to = upstream;
    if (own_ports) {
        in_port_t *port = to.ss_family == AF_INET ? &((struct sockaddr_in *)&to)->sin_port : &((struct sockaddr_in6 *)&to)->sin6_port;
        *port = htons((uint16_t)(ntohs(*port) + i));
    }
    int refused = from_size > 0 && take_port(fd, i) < 0;
    refused = refused || (connect(fd, (struct sockaddr *)&to, upstream_size) < 0 && errno != EINPROGRESS);
    if (refused) {
        close(fd);
        return -1;
    }
    return fd;
}

struct link {
    int fd, which;
    size_t have;
    char buffer[ROOM];
};

/* Reads once and sends whole lines back; 0: it is over. */
static int answer(struct link *l)
{
    ssize_t n = read(l->fd, l->buffer + l->have, ROOM - l->have);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 1;
    if (n <= 0)
        return 0;
    l->have += (size_t)n;
    char *end = memrchr(l->buffer, '\n', l->have);
    if (!end)
        return l->have < ROOM;
    size_t whole = (size_t)(end + 1 - l->buffer), sent = 0;
    while (sent < whole) {
        n = write(l->fd, l->buffer + sent, whole - sent);
        if (n < 0 && errno == EAGAIN) {
            struct pollfd p = {.fd = l->fd, .events = POLLOUT};
            poll(&p, 1, -1);
        } else if (n < 0 && errno != EINTR) {
            return 0;
        } else if (n > 0) {
            sent += (size_t)n;
        }
    }
    l->have -= whole;
    memmove(l->buffer, end + 1, l->have);
    return 1;
}

static void *keep_one(void *arg)
{
    struct link *l = arg;
    for (;;) {
        while ((l->fd = call(l->which)) < 0)
            usleep(50000);
        l->have = 0;
        if (greets && write(l->fd, "hello\n", 6) != 6)
            perror("write");
        while (answer(l))
            ;
        close(l->fd);
        usleep(50000);
    }
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc < 6) {
        fprintf(stderr, "usage: caller PORT UPSTREAM UPSTREAM_PORT COUNT blocking|poll|ports|greet [ADDRESS]\n");
        return 2;
    }
    int on = 1, own = 0;
    count = atoi(argv[4]);
    upstream_size = resolve(argv[2], argv[3], &upstream);
    if (argc > 6)
        from_size = resolve(argv[6], "0", &from);
    own_ports = strcmp(argv[5], "poll") != 0;
    nonblocking = strcmp(argv[5], "poll") == 0 || strcmp(argv[5], "ports") == 0;
    greets = strcmp(argv[5], "greet") == 0;

    static struct link *links[MOST];
    static struct pollfd polled[MOST + 1];
    for (int i = 0; i < count; i++) {
        links[i] = calloc(1, sizeof(struct link));
        links[i]->fd = -1;
        links[i]->which = i;
        pthread_t thread;
        if (!nonblocking && pthread_create(&thread, NULL, keep_one, links[i]) != 0)
            return 1;
    }
    own = nonblocking ? count : 0;

    int listener = socket(upstream.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in6 any6 = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)atoi(argv[1]))};
    struct sockaddr_in any4 = {.sin_family = AF_INET, .sin_port = any6.sin6_port};
    int v6 = upstream.ss_family == AF_INET6;
    if (bind(listener, v6 ? (struct sockaddr *)&any6 : (struct sockaddr *)&any4, v6 ? sizeof any6 : sizeof any4) < 0 ||
        listen(listener, 128) < 0) {
        perror("listen");
        return 1;
    }
    int n = own;
    if (!nonblocking)
        memset(links, 0, sizeof links);
    for (;;) {
        for (int i = 0; i < own; i++)
            if (links[i]->fd < 0)
                links[i]->fd = call(i);
        for (int i = 0; i < n; i++)
            polled[i] = (struct pollfd){.fd = links[i]->fd, .events = POLLIN};
        polled[n] = (struct pollfd){.fd = listener, .events = POLLIN};
        if (poll(polled, (nfds_t)n + 1, 50) < 0)
            continue;
        int before = n;
        if (polled[before].revents && n < MOST) {
            int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            if (fd >= 0) {
                links[n] = calloc(1, sizeof(struct link));
                links[n++]->fd = fd;
            }
        }
        for (int i = before - 1; i >= 0; i--) {
            struct link *l = links[i];
            if (l->fd < 0 || !polled[i].revents || answer(l))
                continue;
            close(l->fd);
            l->fd = -1;
            l->have = 0;
            if (i >= own) {
                free(l);
                links[i] = links[--n];
            }
        }
    }
}
