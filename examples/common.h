/* What several of the example servers need, and what has nothing to do with tcpr. */
#ifndef EXAMPLES_COMMON_H
#define EXAMPLES_COMMON_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static inline void die(const char *what)
{
    perror(what);
    exit(1);
}

struct buffer {
    char *data;
    size_t start, end, room;    /* bytes start..end of data count */
};

static inline size_t buffer_len(const struct buffer *b)
{
    return b->end - b->start;
}

static inline void buffer_reserve(struct buffer *b, size_t n)
{
    if (b->start > 0 && b->end + n > b->room) {
        memmove(b->data, b->data + b->start, b->end - b->start);
        b->end -= b->start;
        b->start = 0;
    }
    if (b->end + n > b->room) {
        b->room = (b->end + n) * 2;
        b->data = realloc(b->data, b->room);
        if (b->data == NULL)
            die("realloc");
    }
}

static inline void buffer_add(struct buffer *b, const void *bytes, size_t n)
{
    buffer_reserve(b, n);
    if (n > 0)
        memcpy(b->data + b->end, bytes, n);
    b->end += n;
}

static inline void buffer_drop(struct buffer *b, size_t n)
{
    b->start += n;
    if (b->start == b->end)
        b->start = b->end = 0;
}

/* The address to listen on, with its length; 0 if it is none. "::" takes connections over IPv4, too. */
static inline socklen_t parse_address(const char *text, int port, struct sockaddr_storage *addr)
{
    struct sockaddr_in *four = (struct sockaddr_in *)addr;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)addr;

    memset(addr, 0, sizeof *addr);
    if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons((uint16_t)port);
        return sizeof *four;
    }
    if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons((uint16_t)port);
        return sizeof *six;
    }
    return 0;
}

/* PORT [ADDRESS] of the command line, as parse_address. Ends the program if they make no sense. */
static inline socklen_t address_of(int argc, char **argv, struct sockaddr_storage *addr)
{
    int port = argc >= 2 && argc <= 3 ? atoi(argv[1]) : 0;
    socklen_t length = 0;

    if (port > 0 && port <= 65535)
        length = parse_address(argc == 3 ? argv[2] : "0.0.0.0", port, addr);
    if (length == 0) {
        fprintf(stderr, "usage: %s PORT [ADDRESS]\n", argv[0]);
        exit(2);
    }
    return length;
}

#ifdef TCPR_H

/* For programs that are linked with libtcpr: joins the manager, and makes a listener. The calls are those of the C library with
 * a prefix. */
static inline int tcpr_listen_on(const struct sockaddr_storage *addr, socklen_t length)
{
    int one = 1, listener;

    if (tcpr_init(NULL) < 0)
        die("tcpr_init");
    listener = tcpr_socket(addr->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0)
        die("socket");
    tcpr_setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (tcpr_bind(listener, (const struct sockaddr *)addr, length) < 0)
        die("bind");
    if (tcpr_listen(listener, SOMAXCONN) < 0)
        die("listen");
    return listener;
}

#endif
#endif
