/* option_server PORT: a thread for each connection, which does what a line asks for with flags and options that a program
 * may give to a connection, and says what came of it in one line.
 *
 *   options      tries those that tcpr refuses; says each one's result and errno
 *   zerocopy N   sends N bytes by MSG_ZEROCOPY, as x and then their place in the stream, before the line
 *   drop N       reads the next N bytes by MSG_TRUNC, which throws them away
 *   peek N       looks at the next N bytes with MSG_PEEK, twice, before it reads them
 *   lowat N      reads once with SO_RCVLOWAT at N; says how much it got
 *   parts N      sends N lines of ten bytes with MSG_MORE, and under TCP_CORK, before the line
 *   file N       sends bytes N to 2N of a file by sendfile, before the line
 *   inherited    says what the connection has from its listener
 *   linger       closes the connection, under SO_LINGER, after the line
 *   closed       says how long the last such close took, in ms
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif
#ifndef TCP_ULP
#define TCP_ULP 31
#endif
#ifndef TCP_ZEROCOPY_RECEIVE
#define TCP_ZEROCOPY_RECEIVE 35
#endif

#ifndef SO_MAX_PACING_RATE
#define SO_MAX_PACING_RATE 47
#endif

/* What the listener is given before it is bound, and its connections have from it. */
static const struct {
    const char *name;
    int level, option, value;
} inherited[] = {
    {"mark", SOL_SOCKET, SO_MARK, 7},
    {"timestamp", SOL_SOCKET, SO_TIMESTAMP, 1},
    {"pacing", SOL_SOCKET, SO_MAX_PACING_RATE, 1000000000},
    {"ttl", IPPROTO_IP, IP_TTL, 77},
    {"tos", IPPROTO_IP, IP_TOS, 8},
    {"keepidle", IPPROTO_TCP, TCP_KEEPIDLE, 300},
    {"linger2", IPPROTO_TCP, TCP_LINGER2, 9},
};
enum { INHERITED = sizeof inherited / sizeof *inherited };

static volatile long close_ms = -1;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void whole(int fd, const char *bytes, size_t n, int flags)
{
    while (n > 0) {
        ssize_t sent = send(fd, bytes, n, flags);
        if (sent <= 0)
            return;
        bytes += sent;
        n -= (size_t)sent;
    }
}

/* n bytes, each ten of them a number: where they begin. */
static char *numbered(size_t n)
{
    char *bytes = malloc(n + 10), number[32];
    for (size_t i = 0; i < n; i += 10) {
        snprintf(number, sizeof number, "x%08zu\n", i);
        memcpy(bytes + i, number, 10);
    }
    return bytes;
}

static void options(int fd, char *answer, size_t room)
{
    int one = 1;
    char window[64] = {0};
    socklen_t length = sizeof window;
    size_t n = 0;
#define TRY(name, call)                                                                                               \
    do {                                                                                                              \
        errno = 0;                                                                                                    \
        long result = (long)(call);                                                                                   \
        n += (size_t)snprintf(answer + n, room - n, "%s %ld/%d ", name, result, errno);                                \
    } while (0)
    TRY("zerocopy", setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one));
    TRY("ulp", setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", 3));
    TRY("repair", setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &one, sizeof one));
    TRY("receive", getsockopt(fd, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, window, &length));
    TRY("oob", send(fd, "!", 1, MSG_OOB));
    TRY("urgent", recv(fd, window, 1, MSG_OOB));
    TRY("fastopen", send(fd, "!", 1, MSG_FASTOPEN) < 0 ? -1 : 0);
    TRY("nodelay", setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one));
}

static long milliseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void *serve(void *argument)
{
    int fd = (int)(long)argument;
    char line[256], answer[512];
    for (;;) {
        size_t length = 0;
        do {
            if (recv(fd, line + length, 1, 0) <= 0) {
                close(fd);
                return NULL;
            }
        } while (line[length++] != '\n' && length < sizeof line - 1);
        line[length - 1] = 0;
        char what[32] = "";
        size_t n = 0;
        int one = 1, zero = 0;
        sscanf(line, "%31s %zu", what, &n);
        snprintf(answer, sizeof answer, "%s %zu", what, n);
        if (strcmp(what, "options") == 0) {
            options(fd, answer, sizeof answer - 1);
        } else if (strcmp(what, "zerocopy") == 0) {
            char *bytes = numbered(n);
            whole(fd, bytes, n, MSG_ZEROCOPY);
            memset(bytes, '?', n);
            free(bytes);
        } else if (strcmp(what, "drop") == 0) {
            size_t dropped = 0;
            while (dropped < n) {
                ssize_t got = recv(fd, NULL, n - dropped, MSG_TRUNC);
                if (got <= 0)
                    break;
                dropped += (size_t)got;
            }
            snprintf(answer, sizeof answer, "drop %zu", dropped);
        } else if (strcmp(what, "peek") == 0) {
            char *a = malloc(n + 1), *b = malloc(n + 1);
            ssize_t first = recv(fd, a, n, MSG_PEEK | MSG_WAITALL), again = recv(fd, b, n, MSG_PEEK | MSG_TRUNC);
            ssize_t got = recv(fd, b, n, MSG_WAITALL);
            int same = first == (ssize_t)n && again == first && got == first && memcmp(a, b, n) == 0;
            snprintf(answer, sizeof answer, "peek %s", same ? "same" : "different");
            free(a);
            free(b);
        } else if (strcmp(what, "lowat") == 0) {
            int mark = (int)n;
            char *bytes = malloc(n + 1);
            setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof mark);
            ssize_t got = read(fd, bytes, n);
            setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &one, sizeof one);
            snprintf(answer, sizeof answer, "lowat %zd", got);
            free(bytes);
        } else if (strcmp(what, "parts") == 0) {
            char *bytes = numbered(10 * n);
            setsockopt(fd, IPPROTO_TCP, TCP_CORK, &one, sizeof one);
            for (size_t i = 0; i < n; i++)
                whole(fd, bytes + 10 * i, 10, i % 2 ? MSG_MORE : 0);
            setsockopt(fd, IPPROTO_TCP, TCP_CORK, &zero, sizeof zero);
            free(bytes);
        } else if (strcmp(what, "file") == 0) {
            FILE *file = tmpfile();
            char *bytes = numbered(2 * n);
            fwrite(bytes, 1, 2 * n, file);
            fflush(file);
            off_t at = (off_t)n;
            while (at < (off_t)(2 * n) && sendfile(fd, fileno(file), &at, 2 * n - (size_t)at) > 0)
                ;
            fclose(file);
            free(bytes);
        } else if (strcmp(what, "inherited") == 0) {
            for (size_t i = 0, at = strlen(answer); i < INHERITED; i++) {
                int value = -1;
                socklen_t room = sizeof value;
                getsockopt(fd, inherited[i].level, inherited[i].option, &value, &room);
                at += (size_t)snprintf(answer + at, sizeof answer - 1 - at, " %s %d", inherited[i].name, value);
            }
        } else if (strcmp(what, "closed") == 0) {
            snprintf(answer, sizeof answer, "closed %ld", close_ms);
        }
        length = strlen(answer);
        answer[length++] = '\n';
        whole(fd, answer, length, 0);
        if (strcmp(what, "linger") == 0) {
            struct linger wait = {1, 20};
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &wait, sizeof wait);
            long before = milliseconds();
            close(fd);
            close_ms = milliseconds() - before;
            return NULL;
        }
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((in_port_t)atoi(argc > 1 ? argv[1] : "5555"))};
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    /* With "early" before anybody knows whose socket it is: what it accepts has it from there. */
    if (argc > 2 && setsockopt(listener, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one) != 0)
        die("SO_ZEROCOPY");
    for (size_t i = 0; i < INHERITED; i++)
        if (setsockopt(listener, inherited[i].level, inherited[i].option, &inherited[i].value, sizeof(int)) != 0)
            die(inherited[i].name);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 100) != 0)
        die("listen");
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        pthread_t thread;
        if (fd >= 0 && pthread_create(&thread, NULL, serve, (void *)(long)fd) == 0)
            pthread_detach(thread);
    }
}
