/* An echo server that keeps back the last bytes of what it has read, and answers them later. What it keeps is in a checkpoint
 * of the session: the process that takes over has them from there, and from nowhere else.
 *
 * usage: keeper PORT BYTES
 * Each checkpoint has BYTES more, which the next process checks.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <tcpr.h>

enum { MOST = 1024, READ = 16 << 10, HELD = 8 };

struct state {
    uint64_t total;             /* bytes read of this session */
    uint64_t held;              /* the last of them, not answered yet */
    char hold[HELD];
    unsigned char more[TCPR_MAX_VALUE - 16 - HELD];
};

static struct session {
    size_t start, end;          /* what is still to be written of out */
    char out[READ + HELD];
    struct state state;
} *sessions[MOST];

static size_t more;
static int epfd;

static void die(const char *what)
{
    fprintf(stderr, "keeper: %s: %s (%s)\n", what, strerror(errno), tcpr_strerror());
    abort();
}

static void check(int so, const char *what)
{
    if (!so)
        die(what);
}

static size_t size_of_state(void)
{
    return offsetof(struct state, more) + more;
}

static void keep(int fd)
{
    struct state *s = &sessions[fd]->state;
    size_t i;

    for (i = 0; i < more; i++)
        s->more[i] = (unsigned char)(s->total + i);
    if (tcpr_checkpoint(fd, s, size_of_state()) < 0 && errno != ENOTCONN && errno != EROFS)
        die("tcpr_checkpoint");
}

/* What a caller does wrong, and what is not there. */
static void mistakes(int listener, int fd)
{
    static char long_value[TCPR_MAX_VALUE + 1];

    check(tcpr_checkpoint(-1, "", 1) < 0 && errno == EBADF, "checkpoint of no descriptor");
    check(tcpr_restore(999, NULL, 0) < 0 && errno == EBADF, "restore of no descriptor");
    check(tcpr_checkpoint(listener, "", 1) < 0 && errno == EINVAL, "checkpoint of a listener");
    check(tcpr_restore(listener, NULL, 0) < 0 && errno == EINVAL, "restore of a listener");
    check(tcpr_checkpoint(fd, long_value, sizeof long_value) < 0 && errno == EMSGSIZE, "a long checkpoint");
    check(tcpr_checkpoint(fd, NULL, 1) < 0 && errno == EFAULT, "a checkpoint of no memory");
    check(tcpr_checkpoint(fd, (void *)16, 1) < 0 && errno == EFAULT, "a checkpoint of bad memory");
}

/* Values of the service: "a" stays, "b" does not. */
static void values(void)
{
    static char long_value[TCPR_MAX_VALUE + 1];
    char key[TCPR_MAX_KEY + 1] = "", text[8] = "";

    check(tcpr_put("", 0, "x", 1) < 0 && errno == EINVAL, "no key");
    check(tcpr_put(key, sizeof key, "x", 1) < 0 && errno == EMSGSIZE, "a long key");
    check(tcpr_put("b", 1, long_value, sizeof long_value) < 0 && errno == EMSGSIZE, "a long value");
    check(tcpr_put("b", 1, (void *)16, 1) < 0 && errno == EFAULT, "a value of bad memory");
    check(tcpr_get("b", 1, text, 1) < 0 && errno == ENOENT, "a value that is not there");
    check(tcpr_delete("b", 1) < 0 && errno == ENOENT, "a value to delete that is not there");
    check(tcpr_put("a", 1, NULL, 0) == 0 && tcpr_get("a", 1, NULL, 0) == 0, "an empty value");
    check(tcpr_put("b", 1, "value", 5) == 0, "tcpr_put");
    check(tcpr_get("b", 1, text, 2) == 5 && memcmp(text, "va\0", 3) == 0, "a part of a value");
    check(tcpr_get("b", 1, (void *)16, 2) < 0 && errno == EFAULT, "bad memory to get to");
    check(tcpr_iterate(NULL, 0, key, sizeof key) == 1 && key[0] == 'a', "the first key");
    check(tcpr_iterate(key, 1, key, sizeof key) == 1 && key[0] == 'b', "the next key");
    check(tcpr_iterate(key, 1, key, sizeof key) == 0, "the end of the keys");
    check(tcpr_iterate(key, sizeof key, key, 1) < 0 && errno == EMSGSIZE, "a long key to go on behind");
    check(tcpr_delete("b", 1) == 0, "tcpr_delete");
    check(tcpr_get("b", 1, text, 1) < 0 && errno == ENOENT, "a value that was deleted");
}

static void restore(int listener, int fd)
{
    struct state *s = &sessions[fd]->state;
    struct tcpr_session_info info;
    ssize_t n;
    size_t i;

    if (tcpr_session_info(fd, &info) < 0) {
        check(errno == ENOTCONN, "tcpr_session_info");
        return;
    }
    n = tcpr_restore(fd, s, sizeof *s);
    if (n < 0) {
        check(errno == ENODATA || errno == ENOTCONN, "tcpr_restore");
        check(errno == ENOTCONN || info.in_done == 0, "input is done, and no data says what it was");
        mistakes(listener, fd);
        values();
        return;
    }
    check(info.origin == TCPR_ORIGIN_RECOVERED, "a new session has data");
    check((size_t)n == size_of_state(), "data of another size");
    check(s->total == info.in_done, "data of another place of the input");
    for (i = 0; i < more; i++)
        check(s->more[i] == (unsigned char)(s->total + i), "data that is not what was given");
    memset(s->more, 0, sizeof s->more);
    check(tcpr_restore(fd, NULL, 0) == n, "the size of the data");
    check(tcpr_restore(fd, s->more, 9) == n && s->more[8] == s->held && s->more[9] == 0, "a part of the data");
    check(tcpr_restore(fd, (void *)16, 9) < 0 && errno == EFAULT, "bad memory to restore to");
}

static void leave(int fd)
{
    tcpr_close(fd);
    free(sessions[fd]);
    sessions[fd] = NULL;
}

/* False: the rest waits for room. */
static int flush(int fd)
{
    struct session *c = sessions[fd];

    while (c->start < c->end) {
        ssize_t n = tcpr_write(fd, c->out + c->start, c->end - c->start);

        if (n < 0)
            return errno != EAGAIN && errno != EINTR;
        c->start += (size_t)n;
    }
    return 1;
}

/* Answers all but the last bytes of what is held and has been read. */
static void answer(int fd, size_t n, size_t held)
{
    struct session *c = sessions[fd];
    struct epoll_event ev = { .events = EPOLLOUT, .data.fd = fd };
    size_t all = c->state.held + n;

    memmove(c->out + c->state.held, c->out + HELD, n);
    memcpy(c->out, c->state.hold, c->state.held);
    held = held < all ? held : all;
    memcpy(c->state.hold, c->out + all - held, held);
    c->state.held = held;
    c->start = 0;
    c->end = all - held;
    if (!flush(fd))
        epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev);
    keep(fd);
}

static void serve(int fd, uint32_t events)
{
    struct session *c = sessions[fd];
    struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };
    ssize_t n;

    if (c->start < c->end) {
        if ((events & (EPOLLERR | EPOLLHUP)) != 0)
            leave(fd);
        else if (flush(fd))
            epoll_ctl(epfd, EPOLL_CTL_MOD, fd, &ev);
        return;
    }
    n = tcpr_read(fd, c->out + HELD, READ);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0) {
        c->state.total += (uint64_t)n;
        answer(fd, (size_t)n, c->state.total % HELD);
        return;
    }
    if (n == 0)
        answer(fd, 0, 0);
    leave(fd);
}

static void welcome(int listener)
{
    int fd, one = 1;

    while ((fd = tcpr_accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };

        check(fd < MOST, "too many");
        sessions[fd] = calloc(1, sizeof **sessions);
        check(sessions[fd] != NULL, "no memory");
        tcpr_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        restore(listener, fd);
        check(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) == 0, "epoll_ctl");
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in addr = { .sin_family = AF_INET };
    struct epoll_event events[64], ev = { .events = EPOLLIN };
    int one = 1, listener, fd;

    if (argc != 3 || (more = strtoul(argv[2], NULL, 10)) > sizeof sessions[0]->state.more) {
        fprintf(stderr, "usage: keeper PORT BYTES\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    check(tcpr_init(NULL) == 0, "tcpr_init");
    listener = tcpr_socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    tcpr_setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    addr.sin_port = htons((uint16_t)atoi(argv[1]));
    check(tcpr_bind(listener, (struct sockaddr *)&addr, sizeof addr) == 0, "bind");
    check(tcpr_listen(listener, SOMAXCONN) == 0, "listen");
    epfd = epoll_create1(EPOLL_CLOEXEC);
    ev.data.fd = listener;
    check(epoll_ctl(epfd, EPOLL_CTL_ADD, listener, &ev) == 0, "epoll");
    for (;;) {
        int i, n = tcpr_epoll_wait(epfd, events, 64, 5);

        for (i = 0; i < n; i++) {
            if (events[i].data.fd == listener)
                welcome(listener);
            else if (sessions[events[i].data.fd] != NULL)
                serve(events[i].data.fd, events[i].events);
        }
        /* Nothing comes: what was kept back is answered. */
        for (fd = 0; n == 0 && fd < MOST; fd++)
            if (sessions[fd] != NULL && sessions[fd]->state.held > 0 && sessions[fd]->start == sessions[fd]->end)
                answer(fd, 0, 0);
    }
}
