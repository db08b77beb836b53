/* signal_server PORT WAY: answers each line with the same line, in a thread for each connection, which a timer interrupts a
 * thousand times a second.
 *
 *   jump    the handler leaves by siglongjmp, out of a read that takes nothing off
 *   rejump  the same, also out of the write of a line, which is written again
 *   write   the handler writes a dot to the connection now and then
 */
#ifndef _GNU_SOURCE /* linked: tcpr_compat.h comes first */
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const char *way;
static __thread sigjmp_buf back;
static __thread volatile sig_atomic_t armed, connection = -1, ticks;

static int is(const char *name)
{
    return strcmp(way, name) == 0;
}

static void on_signal(int number)
{
    int saved = errno;
    (void)number;
    if (is("write") && connection >= 0 && ++ticks % 8 == 0)
        if (write(connection, ".", 1) < 0)
            connection = -1;
    errno = saved;
    if (armed) {
        armed = 0;
        siglongjmp(back, 1);
    }
}

static void *serve(void *argument)
{
    int fd = (int)(long)argument;
    char *bytes = malloc(70000), byte;
    volatile size_t have = 0;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    timer_t timer;
    struct itimerspec often = {{0, 1000000}, {0, 1000000}};
    if (timer_create(CLOCK_MONOTONIC, &event, &timer) != 0 || timer_settime(timer, 0, &often, NULL) != 0) {
        perror("timer");
        exit(1);
    }
    connection = fd;
    for (;;) {
        ssize_t n;
        if (is("jump") || is("rejump")) {
            sigsetjmp(back, 1);
            armed = 1;
            n = recv(fd, &byte, 1, MSG_PEEK);
            armed = 0;
            if (n < 0 && errno == EINTR)
                continue;
            if (n <= 0)
                break;
        }
        do
            n = read(fd, bytes + have, 70000 - have);
        while (n < 0 && errno == EINTR);
        if (n <= 0)
            break;
        have += (size_t)n;
        if (bytes[have - 1] != '\n')
            continue;
        if (is("rejump")) {
            sigsetjmp(back, 1);
            armed = 1;
        }
        for (size_t at = 0; at < have; at += (size_t)n) {
            do
                n = write(fd, bytes + at, have - at);
            while (n < 0 && errno == EINTR);
            if (n < 0)
                break;
        }
        armed = 0;
        have = 0;
    }
    connection = -1;
    timer_delete(timer);
    close(fd);
    free(bytes);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: signal_server PORT WAY\n");
        return 2;
    }
    way = argv[2];
    signal(SIGPIPE, SIG_IGN);
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 64) < 0) {
        perror("listen");
        return 1;
    }
    for (;;) {
        pthread_t thread;
        int fd = accept(listener, NULL, NULL);
        if (fd >= 0 && pthread_create(&thread, NULL, serve, (void *)(long)fd) == 0)
            pthread_detach(thread);
    }
}
