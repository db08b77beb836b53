/* A chat server with plain sockets: nothing in it knows of tcpr. `tcpr run` protects it all the same, by loading
 * libtcpr.so into it. The port needs framing = "lines" in the configuration.
 *
 * usage: plain_chat_server PORT
 *
 * Every line that a client sends is passed on, unchanged, to all other clients. There is no greeting, and
 * the sender gets no echo.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "common.h"

enum {
    MAX_LINE = 1 << 20,         /* a client that sends a longer line is thrown out */
    MAX_BACKLOG = 64 << 20,     /* and one that does not read what the others say */
    READ_SIZE = 64 << 10,
};

struct client {
    int fd;
    int wants_out;              /* EPOLLOUT is set */
    int ended;                  /* it said all it will say: close once it has heard the rest */
    int broken;                 /* to be closed without more ado */
    struct buffer in, out;
};

static struct client **clients;
static size_t n_clients, room_clients;
static int epfd;

/* Not closed while events that name it may be in hand: main does that between two waits. */
static void give_up(struct client *c)
{
    c->broken = 1;
}

static void watch(struct client *c)
{
    int wants_out = buffer_len(&c->out) > 0;
    struct epoll_event ev = { .data.ptr = c };

    if (wants_out == c->wants_out && !c->ended)
        return;
    ev.events = (c->ended ? 0 : EPOLLIN) | (wants_out ? EPOLLOUT : 0);
    c->wants_out = wants_out;
    if (epoll_ctl(epfd, EPOLL_CTL_MOD, c->fd, &ev) < 0)
        die("epoll_ctl");
}

static void flush(struct client *c)
{
    while (!c->broken && buffer_len(&c->out) > 0) {
        ssize_t n = send(c->fd, c->out.data + c->out.start, buffer_len(&c->out), 0);

        if (n >= 0)
            buffer_drop(&c->out, (size_t)n);
        else if (errno == EAGAIN || errno == EWOULDBLOCK)
            break;
        else if (errno != EINTR)
            give_up(c);
    }
    if (!c->broken && c->ended && buffer_len(&c->out) == 0)
        give_up(c);
    if (!c->broken)
        watch(c);
}

static void say(struct client *c, const char *text, size_t n)
{
    if (c->broken || c->ended)
        return;
    if (buffer_len(&c->out) + n > MAX_BACKLOG) {
        give_up(c);
        return;
    }
    buffer_add(&c->out, text, n);
    if (!c->wants_out)
        flush(c);
}

/* Tells the others all lines that are complete. */
static void broadcast(struct client *from)
{
    const char *text = from->in.data + from->in.start;
    const char *last = memrchr(text, '\n', buffer_len(&from->in));
    size_t n, i;

    if (last == NULL)
        return;
    n = (size_t)(last - text) + 1;
    for (i = 0; i < n_clients; i++)
        if (clients[i] != from)
            say(clients[i], text, n);
    buffer_drop(&from->in, n);
}

static void hear(struct client *c)
{
    ssize_t n;

    buffer_reserve(&c->in, READ_SIZE);
    n = recv(c->fd, c->in.data + c->in.end, READ_SIZE, 0);
    if (n > 0) {
        c->in.end += (size_t)n;
        broadcast(c);
        if (buffer_len(&c->in) > MAX_LINE)
            give_up(c);
    } else if (n == 0) {
        c->ended = 1;
        flush(c);
    } else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) {
        give_up(c);
    }
}

static void welcome(int listener)
{
    for (;;) {
        struct epoll_event ev = { .events = EPOLLIN };
        struct client *c;
        int one = 1;
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno != EAGAIN && errno != EWOULDBLOCK)
                perror("accept");
            return;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (n_clients == room_clients) {
            room_clients = room_clients * 2 + 16;
            clients = realloc(clients, room_clients * sizeof *clients);
        }
        c = calloc(1, sizeof *c);
        if (clients == NULL || c == NULL)
            die("no memory");
        c->fd = fd;
        clients[n_clients++] = c;
        ev.data.ptr = c;
        if (epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) < 0)
            die("epoll_ctl");
    }
}

static void farewell(void)
{
    size_t i = 0;

    while (i < n_clients) {
        struct client *c = clients[i];

        if (!c->broken) {
            i++;
            continue;
        }
        clients[i] = clients[--n_clients];
        close(c->fd);
        free(c->in.data);
        free(c->out.data);
        free(c);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in6 addr = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_ANY_INIT };
    struct epoll_event events[64], ev = { .events = EPOLLIN };
    int one = 1, zero = 0, listener, port;

    port = argc == 2 ? atoi(argv[1]) : 0;
    if (port <= 0 || port > 65535) {
        fprintf(stderr, "usage: plain_chat_server PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    /* IPv6, and IPv4 by mapped addresses. */
    listener = socket(AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0)
        die("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &zero, sizeof zero);
    addr.sin6_port = htons((uint16_t)port);
    if (bind(listener, (struct sockaddr *)&addr, sizeof addr) < 0)
        die("bind");
    if (listen(listener, SOMAXCONN) < 0)
        die("listen");
    epfd = epoll_create1(EPOLL_CLOEXEC);
    if (epfd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, listener, &ev) < 0)
        die("epoll");

    for (;;) {
        int i, n = epoll_wait(epfd, events, 64, -1);

        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (i = 0; i < n; i++) {
            struct client *c = events[i].data.ptr;

            if (c == NULL) {
                welcome(listener);
                continue;
            }
            if (!c->broken && (events[i].events & EPOLLOUT))
                flush(c);
            if (!c->broken && !c->ended && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
                hear(c);
            else if (c->ended && (events[i].events & (EPOLLHUP | EPOLLERR)))
                give_up(c);
        }
        farewell();
    }
}
