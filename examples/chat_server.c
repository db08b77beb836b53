/* A chat server that is linked with libtcpr: its connections survive the death of the process or the machine.
 *
 * usage: chat_server PORT [ADDRESS]
 * Run it by `tcpr run`; or by itself, then it hosts the manager as a thread (TCPR_CONFIG names the configuration).
 *
 * Every line that a client sends is passed on, unchanged, to all other clients. There is no greeting, and
 * the sender gets no echo.
 *
 * The program differs from plain_chat_server.c in two ways:
 * - It calls tcpr_init, and its socket calls have the prefix tcpr_ (tcpr_socket, tcpr_accept4, tcpr_read...).
 * - tcpr_consume says how much input of a client is done. Half a line is not done: it is in this program's
 *   memory only, and the process that takes over has to read it again.
 * After a takeover, clients that were connected come out of tcpr_accept like new ones.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tcpr.h>

enum {
    MAX_LINE = 1 << 20,         /* a client that sends a longer line is thrown out */
    MAX_BACKLOG = 64 << 20,     /* and one that does not read what the others say */
    READ_SIZE = 64 << 10,
};

struct buffer {
    char *data;
    size_t start, end, room;    /* bytes start..end of data count */
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

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static size_t buffer_len(const struct buffer *b)
{
    return b->end - b->start;
}

static void buffer_reserve(struct buffer *b, size_t n)
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

static void buffer_drop(struct buffer *b, size_t n)
{
    b->start += n;
    if (b->start == b->end)
        b->start = b->end = 0;
}

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
        ssize_t n = tcpr_send(c->fd, c->out.data + c->out.start, buffer_len(&c->out), 0);

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
    buffer_reserve(&c->out, n);
    memcpy(c->out.data + c->out.end, text, n);
    c->out.end += n;
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
    if (tcpr_consume(from->fd, n) < 0)
        perror("tcpr_consume");
    buffer_drop(&from->in, n);
}

static void hear(struct client *c)
{
    ssize_t n;

    buffer_reserve(&c->in, READ_SIZE);
    n = tcpr_recv(c->fd, c->in.data + c->in.end, READ_SIZE, 0);
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
        int fd = tcpr_accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            if (errno != EAGAIN && errno != EWOULDBLOCK)
                perror("accept");
            return;
        }
        tcpr_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        /* From now on this program alone says what is done. Otherwise passing a line on to others would count as
         * the answer to half a line of this client. */
        if (tcpr_consume(fd, 0) < 0)
            perror("tcpr_consume");
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
        tcpr_close(c->fd);
        free(c->in.data);
        free(c->out.data);
        free(c);
    }
}

/* The address to listen on, with its length; 0 if it is none. "::" takes connections over IPv4, too. */
static socklen_t parse(const char *text, int port, struct sockaddr_storage *addr)
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

int main(int argc, char **argv)
{
    struct sockaddr_storage addr;
    struct epoll_event events[64], ev = { .events = EPOLLIN };
    int one = 1, listener, port;
    socklen_t length = 0;

    port = argc >= 2 && argc <= 3 ? atoi(argv[1]) : 0;
    if (port > 0 && port <= 65535)
        length = parse(argc == 3 ? argv[2] : "0.0.0.0", port, &addr);
    if (length == 0) {
        fprintf(stderr, "usage: chat_server PORT [ADDRESS]\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    if (tcpr_init(NULL) < 0)
        die("tcpr_init");
    listener = tcpr_socket(addr.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0)
        die("socket");
    tcpr_setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (tcpr_bind(listener, (struct sockaddr *)&addr, length) < 0)
        die("bind");
    if (tcpr_listen(listener, SOMAXCONN) < 0)
        die("listen");
    epfd = epoll_create1(EPOLL_CLOEXEC);
    if (epfd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, listener, &ev) < 0)
        die("epoll");

    for (;;) {
        int i, n = tcpr_epoll_wait(epfd, events, 64, -1);

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
