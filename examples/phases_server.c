/* A server in phases: it sets its service up when its machine becomes the master, and tears it down when it is the master no longer.
 * It is linked with libtcpr, and its connections survive the death of the process or the machine.
 *
 * usage: phases_server PORT [ADDRESS]
 * Run it by `tcpr run`; or by itself, then it hosts the manager as a thread (TCPR_CONFIG names the configuration). Its port has
 * framing = "lines" in the configuration. A client that sends a line gets it back, with the number of lines that the service
 * has had from all clients so far.
 *
 * The other examples listen as soon as they are started, and on the backup nobody comes. That is simplest, and best for most
 * servers. A server that must not do certain things on a backup (have a file open, a job run, a connection to a database) does them
 * by the role of its machine. It hears of the role by a callback (tcpr_on_role_change), which another thread calls. Here the
 * callback does nothing but put the role into a pipe. So the program's one event loop sees roles and connections in turn, and needs
 * no locks.
 *
 *     wait -> setup -> handle_events -> (stop) -> teardown -> wait ...
 *
 * What happens at the end of being master is decided in the configuration:
 *
 * - on_demote = "restart", the default under `tcpr run`: the program is killed and started again, and begins with wait. It never
 *   comes to teardown.
 * - on_demote = "disconnect", or without `tcpr run`: the connections of this process end (they live on at the new master), the callback
 *   is called, and the program tears its service down and waits.
 * - standby = "cold": the program is not started on a backup at all. It needs no callback then: when it runs, it is the master.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <unistd.h>

#include <tcpr.h>

#include "common.h"

enum { MOST = 64, LINE = 1024 };

static int role = TCPR_ROLE_STARTING;
static int news[2];             /* a pipe of roles */
static struct sockaddr_storage address;
static socklen_t address_length;

/* The service. Entry 0 is the pipe, entry 1 the listener, and the others are clients. */
static struct pollfd polled[MOST];
static struct buffer input[MOST];
static nfds_t used = 1;
static uint64_t lines;          /* kept under a key, and put in the turn that counts */

/* Called by a thread of the library. */
static void on_role(int new_role, void *arg)
{
    if (write(*(int *)arg, &new_role, sizeof new_role) != (ssize_t)sizeof new_role)
        perror("write");
}

static void read_role(void)
{
    if (read(news[0], &role, sizeof role) != (ssize_t)sizeof role)
        die("read");
    if (role == -1) {
        fprintf(stderr, "phases_server: the manager is gone\n");
        exit(1);
    }
}

/* A master that is fenced may be the master again in a moment; until then nothing that it says leaves. */
static int serves(void)
{
    return role == TCPR_ROLE_MASTER || role == TCPR_ROLE_FENCED;
}

static void setup(void)
{
    fprintf(stderr, "phases_server: setup\n");
    if (tcpr_get("lines", 5, &lines, sizeof lines) < 0) {
        if (errno != ENOENT)
            fprintf(stderr, "tcpr_get: %s\n", tcpr_strerror());
        lines = 0;
    }
    polled[1].fd = tcpr_listen_on(&address, address_length);
    polled[1].events = POLLIN;
    used = 2;
}

static void drop(nfds_t i)
{
    tcpr_close(polled[i].fd);
    free(input[i].data);
    polled[i] = polled[--used];
    input[i] = input[used];
    memset(&input[used], 0, sizeof input[used]);
}

static void teardown(void)
{
    fprintf(stderr, "phases_server: teardown\n");
    while (used > 1)
        drop(used - 1);
}

static void welcome(void)
{
    int one = 1, fd = tcpr_accept4(polled[1].fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (fd < 0)
        return;
    if (used == MOST) {
        tcpr_close(fd);
        return;
    }
    tcpr_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    polled[used].fd = fd;
    polled[used++].events = POLLIN;
}

/* 0: the client is to be dropped. */
static int answer(int fd, const char *line, size_t n)
{
    char text[LINE + 32];
    int length = snprintf(text, sizeof text, "%llu %.*s\n", (unsigned long long)++lines, (int)n, line);

    if (tcpr_put("lines", 5, &lines, sizeof lines) < 0)
        fprintf(stderr, "tcpr_put: %s\n", tcpr_strerror());
    return tcpr_send(fd, text, (size_t)length, MSG_DONTWAIT) == length;
}

/* 0: the client is to be dropped. */
static int hear(int fd, struct buffer *b)
{
    ssize_t n;
    char *end;

    buffer_reserve(b, LINE);
    n = tcpr_read(fd, b->data + b->end, LINE);
    if (n <= 0)
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    b->end += (size_t)n;
    while ((end = buffer_len(b) == 0 ? NULL : memchr(b->data + b->start, '\n', buffer_len(b))) != NULL) {
        const char *line = b->data + b->start;

        if (end - line >= LINE || !answer(fd, line, (size_t)(end - line)))
            return 0;
        buffer_drop(b, (size_t)(end - line) + 1);
    }
    return buffer_len(b) < LINE;
}

/* Until the service is to stop. */
static void handle_events(void)
{
    while (serves()) {
        nfds_t i;

        if (tcpr_poll(polled, used, -1) < 0 && errno != EINTR)
            die("poll");
        for (i = used; i-- > 2;)
            if (polled[i].revents != 0 && !hear(polled[i].fd, &input[i]))
                drop(i);
        if (polled[1].revents != 0)
            welcome();
        if (polled[0].revents != 0)
            read_role();
    }
}

int main(int argc, char **argv)
{
    address_length = address_of(argc, argv, &address);
    signal(SIGPIPE, SIG_IGN);
    if (pipe2(news, O_CLOEXEC) < 0)
        die("pipe");
    polled[0].fd = news[0];
    polled[0].events = POLLIN;
    if (tcpr_init(NULL) < 0)
        die("tcpr_init");
    if (tcpr_on_role_change(on_role, &news[1]) < 0)
        die("tcpr_on_role_change");
    for (;;) {
        while (!serves())
            read_role();        /* the pipe is empty: this waits */
        setup();
        handle_events();
        teardown();
    }
}
