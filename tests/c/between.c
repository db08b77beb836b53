/* A server whose threads have things between them when it is promoted: bytes in a pipe, a count of events, watches for one event, a
   connect under way. Its threads and locks are those of <threads.h>. Commands of the first client, a line each:
   "jobs" and "events" give five to a thread that takes 100 ms for each; "arm" watches the readable end of a pipe once more for one
   event; "connect" connects to where nobody answers, and "error" tells what became of that; "run" runs a command; "told" tells how
   many jobs, events, and events of each watch there were, and what the command has said. Other clients are watched for one event, and
   not read. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <threads.h>
#include <unistd.h>

enum { PIPE, CLIENT };

static mtx_t lock;
static cnd_t counted;
static int jobs_in, jobs_out, counter, epoll, watched;
static unsigned long jobs, events, watches[2];
static char said[100];

static void nap(void)
{
    thrd_sleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
}

static void count(unsigned long *what, unsigned long n)
{
    mtx_lock(&lock);
    *what += n;
    cnd_signal(&counted);
    mtx_unlock(&lock);
}

static int work(void *unused)
{
    char job;

    for (; read(jobs_out, &job, 1) == 1; nap())
        count(&jobs, 1);
    return unused != NULL;
}

static int take_events(void *unused)
{
    eventfd_t n;

    for (; eventfd_read(counter, &n) == 0; nap())
        count(&events, n);
    return unused != NULL;
}

static int watch(void *unused)
{
    struct epoll_event event;

    while (epoll_wait(epoll, &event, 1, -1) == 1)
        count(&watches[event.data.u32], 1);
    return unused != NULL;
}

/* The queue of a listener that accepts nobody is full after a few. */
static int connect_to_nobody(void)
{
    struct sockaddr_in me = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof me;
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    if (bind(listener, (struct sockaddr *)&me, sizeof me) < 0 || listen(listener, 0) < 0
        || getsockname(listener, (struct sockaddr *)&me, &length) < 0)
        return -1;
    for (int i = 0; i < 8; i++) {
        struct pollfd one = {.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), .events = POLLOUT};

        if (connect(one.fd, (struct sockaddr *)&me, sizeof me) < 0 && errno == EINPROGRESS && poll(&one, 1, 50) == 0)
            return one.fd;
    }
    return -1;
}

static int error_of(int fd)
{
    struct pollfd one = {.fd = fd, .events = POLLOUT};
    int error = 0;
    socklen_t length = sizeof error;

    if (poll(&one, 1, 0) == 1)
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    return error;
}

static void run(const char *command)
{
    FILE *stream = popen(command, "r");

    if (stream == NULL || fgets(said, sizeof said, stream) == NULL || pclose(stream) != 0)
        strcpy(said, "failed");
    said[strcspn(said, "\n")] = 0;
}

int main(int argc, char **argv)
{
    struct sockaddr_in me = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argc > 1 ? argv[1] : "0"))};
    struct epoll_event one = {.events = EPOLLIN | EPOLLONESHOT, .data.u32 = PIPE};
    struct pollfd from[2] = {{.fd = socket(AF_INET, SOCK_STREAM, 0), .events = POLLIN}, {.fd = -1, .events = POLLIN}};
    int on = 1, ends[2], under_way = -1;
    thrd_t thread;

    setsockopt(from[0].fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(from[0].fd, (struct sockaddr *)&me, sizeof me) < 0 || listen(from[0].fd, 5) < 0) {
        perror("between");
        return 1;
    }
    if (mtx_init(&lock, mtx_plain) != thrd_success || cnd_init(&counted) != thrd_success || pipe(ends) < 0)
        return 1;
    jobs_out = ends[0];
    jobs_in = ends[1];
    counter = eventfd(0, 0);
    epoll = epoll_create1(0);
    if (pipe(ends) < 0 || write(ends[1], "x", 1) != 1)
        return 1;
    watched = ends[0];
    epoll_ctl(epoll, EPOLL_CTL_ADD, watched, &one);
    if (thrd_create(&thread, work, NULL) != thrd_success || thrd_create(&thread, take_events, NULL) != thrd_success
        || thrd_create(&thread, watch, NULL) != thrd_success)
        return 1;
    while (poll(from, 2, -1) > 0) {
        char line[100], answer[200] = "done\n";
        ssize_t n;

        if (from[0].revents != 0) {
            int client = accept(from[0].fd, NULL, NULL);

            if (from[1].fd < 0) {
                from[1].fd = client;
            } else {
                one.data.u32 = CLIENT;
                epoll_ctl(epoll, EPOLL_CTL_ADD, client, &one);
            }
            continue;
        }
        n = recv(from[1].fd, line, sizeof line - 1, 0);
        if (n <= 0)
            return 0;
        line[n] = 0;
        if (strncmp(line, "jobs", 4) == 0) {
            for (int i = 0; i < 5; i++)
                if (write(jobs_in, "j", 1) != 1)
                    return 1;
        } else if (strncmp(line, "events", 6) == 0) {
            for (int i = 0; i < 5; i++)
                eventfd_write(counter, 1);
        } else if (strncmp(line, "arm", 3) == 0) {
            one.data.u32 = PIPE;
            epoll_ctl(epoll, EPOLL_CTL_MOD, watched, &one);
        } else if (strncmp(line, "connect", 7) == 0) {
            under_way = connect_to_nobody();
            snprintf(answer, sizeof answer, "%s\n", under_way < 0 ? "no" : "under way");
        } else if (strncmp(line, "error", 5) == 0) {
            snprintf(answer, sizeof answer, "%d\n", error_of(under_way));
        } else if (strncmp(line, "run ", 4) == 0) {
            run(line + 4);
        } else {
            mtx_lock(&lock);
            snprintf(answer, sizeof answer, "%lu %lu %lu %lu %s\n", jobs, events, watches[PIPE], watches[CLIENT], said);
            mtx_unlock(&lock);
        }
        send(from[1].fd, answer, strlen(answer), 0);
    }
    return 0;
}
