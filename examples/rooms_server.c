/* A chat server whose clients are somebody: they have names, are in rooms, and the server counts what they say. Nothing in it
 * knows of tcpr, and all of that is in its memory alone. With standby = "hot" it survives the death of the machine.
 *
 * usage: rooms_server PORT [epoll|poll|select]
 *
 *   name NAME    what the others see            -> "ok NAME"
 *   join ROOM    from now on in this room       -> "ok ROOM MEMBERS"
 *   who          who is in the room             -> "NAME NAME ..."
 *   say TEXT     to all in the room             -> "ROOM NAME: TEXT" to each of them
 *   count        lines so far: mine, and all    -> "MINE ALL"
 *   time         milliseconds since the start   -> a number that never goes back
 *   token        a secret of this connection    -> the same at each time
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 1000, LINE = 4096 };

struct client {
    int used;
    char name[32], room[32];
    unsigned long lines;
    unsigned long long token;
    char in[LINE];
    size_t have;
};

static struct client clients[MOST];     /* by descriptor */
static unsigned long all_lines;
static struct timespec began;
static int listener, epfd = -1;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void tell(int fd, const char *format, ...)
{
    char line[LINE + 256];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (n > (int)sizeof line - 2)
        n = sizeof line - 2;
    line[n] = '\n';
    /* A client that does not read is not worth waiting for; this one waits all the same. */
    if (write(fd, line, n + 1) < 0 && errno != EPIPE && errno != ECONNRESET)
        perror("write");
}

static void leave(int fd)
{
    close(fd);
    memset(&clients[fd], 0, sizeof clients[fd]);
}

static void enter(void)
{
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        return;
    if (fd >= MOST) {
        close(fd);
        return;
    }
    struct client *c = &clients[fd];
    c->used = 1;
    snprintf(c->name, sizeof c->name, "guest%d", fd);
    strcpy(c->room, "lobby");
    if (getrandom(&c->token, sizeof c->token, 0) < 0)
        die("getrandom");
    struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };
    if (epfd >= 0 && epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &event) < 0)
        die("epoll_ctl");
}

static void command(int fd, char *line)
{
    struct client *c = &clients[fd];
    char *rest = strchr(line, ' ');
    if (rest)
        *rest++ = 0;
    else
        rest = line + strlen(line);
    c->lines++;
    all_lines++;
    if (!strcmp(line, "name")) {
        snprintf(c->name, sizeof c->name, "%s", rest);
        tell(fd, "ok %s", c->name);
    } else if (!strcmp(line, "join")) {
        snprintf(c->room, sizeof c->room, "%s", rest);
        int members = 0;
        for (int i = 0; i < MOST; i++)
            members += clients[i].used && !strcmp(clients[i].room, c->room);
        tell(fd, "ok %s %d", c->room, members);
    } else if (!strcmp(line, "who")) {
        char names[LINE] = "";
        for (int i = 0; i < MOST; i++)
            if (clients[i].used && !strcmp(clients[i].room, c->room) && strlen(names) < LINE - 64) {
                strcat(names, *names ? " " : "");
                strcat(names, clients[i].name);
            }
        tell(fd, "%s", names);
    } else if (!strcmp(line, "say")) {
        for (int i = 0; i < MOST; i++)
            if (clients[i].used && !strcmp(clients[i].room, c->room))
                tell(i, "%s %s: %s", c->room, c->name, rest);
    } else if (!strcmp(line, "count")) {
        tell(fd, "%lu %lu", c->lines, all_lines);
    } else if (!strcmp(line, "time")) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        tell(fd, "%ld", (now.tv_sec - began.tv_sec) * 1000 + (now.tv_nsec - began.tv_nsec) / 1000000);
    } else if (!strcmp(line, "token")) {
        tell(fd, "%llx", c->token);
    } else {
        tell(fd, "what?");
    }
}

static void hear(int fd)
{
    struct client *c = &clients[fd];
    ssize_t n = read(fd, c->in + c->have, sizeof c->in - c->have);
    if (n <= 0) {
        leave(fd);
        return;
    }
    c->have += n;
    char *end;
    while (c->used && (end = memchr(c->in, '\n', c->have))) {
        *end = 0;
        char line[LINE];
        strcpy(line, c->in);
        c->have -= end + 1 - c->in;
        memmove(c->in, end + 1, c->have);
        command(fd, line);
    }
    if (c->have == sizeof c->in)
        leave(fd);
}

static void ready(int fd)
{
    if (fd == listener)
        enter();
    else
        hear(fd);
}

static void by_epoll(void)
{
    struct epoll_event events[16], first = { .events = EPOLLIN, .data.fd = listener };
    if ((epfd = epoll_create1(0)) < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, listener, &first) < 0)
        die("epoll");
    for (;;) {
        int n = epoll_wait(epfd, events, 16, 1000);
        for (int i = 0; i < n; i++)
            ready(events[i].data.fd);
    }
}

static void by_poll(void)
{
    for (;;) {
        struct pollfd list[MOST + 1] = { { .fd = listener, .events = POLLIN } };
        int n = 1;
        for (int i = 0; i < MOST; i++)
            if (clients[i].used)
                list[n++] = (struct pollfd){ .fd = i, .events = POLLIN };
        if (poll(list, n, 1000) > 0)
            for (int i = 0; i < n; i++)
                if (list[i].revents)
                    ready(list[i].fd);
    }
}

static void by_select(void)
{
    for (;;) {
        fd_set set;
        FD_ZERO(&set);
        FD_SET(listener, &set);
        for (int i = 0; i < MOST; i++)
            if (clients[i].used)
                FD_SET(i, &set);
        struct timeval timeout = { .tv_sec = 1 };
        if (select(MOST, &set, NULL, NULL, &timeout) > 0)
            for (int i = 0; i < MOST; i++)
                if (FD_ISSET(i, &set))
                    ready(i);
    }
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: rooms_server PORT [epoll|poll|select]\n");
        return 2;
    }
    clock_gettime(CLOCK_MONOTONIC, &began);
    struct sockaddr_in6 at = { .sin6_family = AF_INET6, .sin6_port = htons(atoi(argv[1])) };
    int on = 1, off = 0;
    listener = socket(AF_INET6, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0)
        die("bind");
    if (listen(listener, 128) < 0)
        die("listen");
    const char *how = argc > 2 ? argv[2] : "epoll";
    if (!strcmp(how, "poll"))
        by_poll();
    else if (!strcmp(how, "select"))
        by_select();
    else
        by_epoll();
}
