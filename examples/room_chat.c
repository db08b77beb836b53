/* A chat server whose clients have nicknames and are in rooms, and whose rooms have a history. It is linked with libtcpr, and
 * all of that survives the death of the process or the machine: nobody has to connect, log in or join again.
 *
 * usage: room_chat PORT [ADDRESS]
 * Run it by `tcpr run`; or by itself, then it hosts the manager as a thread (TCPR_CONFIG names the configuration).
 *
 *   /nick NAME   -> "* NAME"                          what the others see
 *   /join ROOM   -> the history of the room, "* ROOM"  from now on in this room
 *   /who         -> "* NAME NAME ..."                 who is in the room
 *   /rooms       -> "* ROOM ROOM ..."                 rooms that have a history
 *   /forget      -> "* forgotten"                     the history of the room is no more
 *   TEXT         -> "NAME: TEXT" to all in the room
 *
 * chat_server.c keeps the connections, but a process that takes over knows nothing of who is at their other ends. This program
 * gives tcpr what it has to know:
 *
 * - What belongs to a client is in a checkpoint of its connection (tcpr_checkpoint): nickname, room, and the part of a line that
 *   has come so far. When the connection comes out of tcpr_accept in the process that takes over, tcpr_restore has it.
 * - What belongs to nobody in particular is under keys (tcpr_put): the history of each room, and how many guests there were.
 *   The process that takes over finds it by tcpr_get; it need not load anything when it starts.
 *
 * Three things make this simple:
 *
 * - A turn is all that the program does between two waits, or between a read and the next one. What it has written, put and checkpointed in a turn
 *   counts as a whole. A crash in the middle of a turn leaves nothing of it: the next process reads the same lines again.
 * - The input of a checkpoint is done. Because the unfinished line is in the checkpoint, "all that I have read" is always right,
 *   and the port needs no framing in the configuration.
 * - So there is one rule: after you have read from a client and dealt with it, make a checkpoint (see hear()).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <tcpr.h>

#include "common.h"

enum { MOST = 1024, NAME = 32, LINE = 1024, HISTORY = 4096 };

/* All that the program knows of a client. It goes into a checkpoint as it is: both members run the same program. */
struct client {
    char nick[NAME], room[NAME];
    unsigned have;
    char line[LINE];            /* its first `have` bytes have come */
};

static struct client *clients[MOST];    /* by descriptor */
static int broken[MOST];                /* to be closed when the turn is over */

static void keep(int fd)
{
    /* ENOTCONN: it has just been reset. Anything else is for whoever operates the server. */
    if (tcpr_checkpoint(fd, clients[fd], sizeof *clients[fd]) < 0 && errno != ENOTCONN)
        fprintf(stderr, "tcpr_checkpoint: %s\n", tcpr_strerror());
}

/* A client that does not read what it is told is thrown out. (Otherwise what it was not told would have to be kept, too.) */
static void tell(int fd, const char *text, size_t n)
{
    ssize_t sent = broken[fd] ? (ssize_t)n : tcpr_send(fd, text, n, MSG_DONTWAIT);

    if (sent != (ssize_t)n)
        broken[fd] = 1;
}

static void say(int fd, const char *format, ...)
{
    char text[NAME * MOST];
    va_list arguments;
    int n;

    va_start(arguments, format);
    n = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (n > 0)
        tell(fd, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

static size_t history_key(char *key, size_t size, const char *room)
{
    return (size_t)snprintf(key, size, "history/%s", room);
}

/* The history of a room: its last lines, as many as have room. */
static size_t history(const char *room, char *text)
{
    char key[NAME + 16];
    ssize_t n = tcpr_get(key, history_key(key, sizeof key, room), text, HISTORY);

    if (n < 0 && errno != ENOENT)
        fprintf(stderr, "tcpr_get: %s\n", tcpr_strerror());
    return n < 0 ? 0 : (size_t)n;
}

static void remember(const char *room, const char *line, size_t n)
{
    char key[NAME + 16], text[HISTORY + LINE + NAME + 4];
    size_t have = history(room, text);
    const char *begin = text;

    memcpy(text + have, line, n);
    have += n;
    while (have > HISTORY) {
        const char *second = (const char *)memchr(begin, '\n', have) + 1;

        have -= (size_t)(second - begin);
        begin = second;
    }
    if (tcpr_put(key, history_key(key, sizeof key, room), begin, have) < 0)
        fprintf(stderr, "tcpr_put: %s\n", tcpr_strerror());
}

/* Rooms that have a history: the keys that begin with "history/", one after another. */
static void rooms(int fd)
{
    char key[TCPR_MAX_KEY + 1] = "history/", list[NAME * 64] = "";
    const size_t prefix = strlen(key);
    ssize_t n = (ssize_t)prefix;

    while ((n = tcpr_iterate(key, (size_t)n, key, TCPR_MAX_KEY)) > 0 && memcmp(key, "history/", prefix) == 0) {
        key[n] = 0;
        if (strlen(list) + NAME < sizeof list) {
            strcat(list, " ");
            strcat(list, key + prefix);
        }
    }
    say(fd, "*%s\n", list);
}

static void who(int fd)
{
    char list[NAME * MOST] = "";
    int i;

    for (i = 0; i < MOST; i++)
        if (clients[i] != NULL && strcmp(clients[i]->room, clients[fd]->room) == 0) {
            strcat(list, " ");
            strcat(list, clients[i]->nick);
        }
    say(fd, "*%s\n", list);
}

/* A word of a command: letters and digits, shorter than NAME. */
static int is_name(const char *text)
{
    size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789");

    return n > 0 && n < NAME && text[n] == 0;
}

static void obey(int fd, const char *line)
{
    struct client *c = clients[fd];
    char text[LINE + NAME + 4], key[NAME + 16];
    int i, n;

    if (strncmp(line, "/nick ", 6) == 0 && is_name(line + 6)) {
        strcpy(c->nick, line + 6);
        say(fd, "* %s\n", c->nick);
    } else if (strncmp(line, "/join ", 6) == 0 && is_name(line + 6)) {
        char past[HISTORY];

        strcpy(c->room, line + 6);
        tell(fd, past, history(c->room, past));
        say(fd, "* %s\n", c->room);
    } else if (strcmp(line, "/who") == 0) {
        who(fd);
    } else if (strcmp(line, "/rooms") == 0) {
        rooms(fd);
    } else if (strcmp(line, "/forget") == 0) {
        if (tcpr_delete(key, history_key(key, sizeof key, c->room)) < 0 && errno != ENOENT)
            fprintf(stderr, "tcpr_delete: %s\n", tcpr_strerror());
        say(fd, "* forgotten\n");
    } else if (line[0] == '/') {
        say(fd, "* what?\n");
    } else {
        n = snprintf(text, sizeof text, "%s: %s\n", c->nick, line);
        remember(c->room, text, (size_t)n);
        for (i = 0; i < MOST; i++)
            if (clients[i] != NULL && strcmp(clients[i]->room, c->room) == 0)
                tell(i, text, (size_t)n);
    }
}

static void hear(int fd)
{
    struct client *c = clients[fd];
    ssize_t n = tcpr_recv(fd, c->line + c->have, LINE - c->have, MSG_DONTWAIT);
    char *end;

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        broken[fd] = 1;
        return;
    }
    c->have += (unsigned)n;
    while ((end = memchr(c->line, '\n', c->have)) != NULL) {
        char line[LINE];
        size_t length = (size_t)(end - c->line);

        memcpy(line, c->line, length);
        line[length > 0 && line[length - 1] == '\r' ? length - 1 : length] = 0;
        c->have -= (unsigned)length + 1;
        memmove(c->line, end + 1, c->have);
        obey(fd, line);
    }
    if (c->have == LINE)
        broken[fd] = 1;         /* nobody says so much in one line */
    else
        keep(fd);
}

/* Somebody who was never here: a guest with a number of their own. */
static void greet(int fd)
{
    struct client *c = clients[fd];
    unsigned guests = 0;

    if (tcpr_get("guests", 6, &guests, sizeof guests) < 0 && errno != ENOENT)
        fprintf(stderr, "tcpr_get: %s\n", tcpr_strerror());
    guests++;
    if (tcpr_put("guests", 6, &guests, sizeof guests) < 0)
        fprintf(stderr, "tcpr_put: %s\n", tcpr_strerror());
    snprintf(c->nick, sizeof c->nick, "guest%u", guests);
    strcpy(c->room, "lobby");
    say(fd, "* %s\n", c->nick);
    keep(fd);
}

static void welcome(int listener, int epfd)
{
    int fd, one = 1;
    ssize_t n;

    while ((fd = tcpr_accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };

        if (fd >= MOST || (clients[fd] = calloc(1, sizeof *clients[fd])) == NULL) {
            tcpr_close(fd);
            continue;
        }
        tcpr_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &ev) < 0)
            die("epoll_ctl");
        /* After a takeover the connections that were there come first, each with what its last checkpoint has said. One
         * that had no checkpoint was not greeted either: greeting and checkpoint are of one turn. */
        n = tcpr_restore(fd, clients[fd], sizeof *clients[fd]);
        if (n < 0 && errno == ENODATA)
            greet(fd);
        else if (n != (ssize_t)sizeof *clients[fd] || clients[fd]->have >= LINE)
            broken[fd] = 1;     /* of another version of this program, or the connection is over */
    }
    if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
        perror("accept");
}

int main(int argc, char **argv)
{
    struct sockaddr_storage addr;
    struct epoll_event events[64], ev = { .events = EPOLLIN };
    socklen_t length = address_of(argc, argv, &addr);
    int listener, epfd, fd;

    signal(SIGPIPE, SIG_IGN);
    listener = tcpr_listen_on(&addr, length);
    epfd = epoll_create1(EPOLL_CLOEXEC);
    ev.data.fd = listener;
    if (epfd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, listener, &ev) < 0)
        die("epoll");

    for (;;) {
        int i, n = tcpr_epoll_wait(epfd, events, 64, -1);

        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (i = 0; i < n; i++) {
            if (events[i].data.fd == listener)
                welcome(listener, epfd);
            else if (!broken[events[i].data.fd])
                hear(events[i].data.fd);
        }
        for (fd = 0; fd < MOST; fd++)
            if (broken[fd]) {
                tcpr_close(fd);
                free(clients[fd]);
                clients[fd] = NULL;
                broken[fd] = 0;
            }
    }
}
