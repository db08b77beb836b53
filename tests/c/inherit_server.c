/* inherit_server PORT 4|6 WHAT: answers each line with the options that the connection has, all that can be asked for.
 *
 *   listener   sets options of its listener that an accepted socket inherits
 *   device     the same, and SO_BINDTODEVICE; takes the device's name after it
 *   deferred   accepts a client when it has said something (TCP_DEFER_ACCEPT)
 *   small      sends no more than 500 bytes at once (TCP_MAXSEG)
 *   plain      sets none
 *
 * The line "set" sets options of the connection itself first. A thread for each connection.
 */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static void die(const char *what)
{
    perror(what);
    exit(1);
}

struct number {
    int level, name, value;
};

/* What may be missing in a kernel, or need a privilege, is set if it can be. */
static const struct number listeners[] = {
    {SOL_SOCKET, SO_KEEPALIVE, 1}, {SOL_SOCKET, SO_OOBINLINE, 1}, {SOL_SOCKET, SO_DONTROUTE, 0}, {SOL_SOCKET, SO_BROADCAST, 1},
    {SOL_SOCKET, SO_MARK, 77}, {SOL_SOCKET, SO_TIMESTAMP, 1}, {SOL_SOCKET, 40, 1}, {SOL_SOCKET, 41, 1}, {SOL_SOCKET, 43, 1},
    {SOL_SOCKET, 45, 1}, {SOL_SOCKET, 46, 50}, {SOL_SOCKET, 47, 500000000}, {SOL_SOCKET, 69, 1}, {SOL_SOCKET, 70, 16}, {SOL_SOCKET, 74, 0},
    {SOL_SOCKET, 75, 1}, {SOL_SOCKET, SO_REUSEPORT, 1},
    {IPPROTO_IP, IP_TOS, 0x48}, {IPPROTO_IP, IP_TTL, 201}, {IPPROTO_IP, 21, 3}, {IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO},
    {IPPROTO_IP, IP_RECVTTL, 1}, {IPPROTO_IP, IP_RECVTOS, 1}, {IPPROTO_IP, IP_PKTINFO, 1}, {IPPROTO_IP, IP_RECVERR, 1},
    {IPPROTO_IP, IP_RECVOPTS, 1}, {IPPROTO_IP, IP_RETOPTS, 1}, {IPPROTO_IP, 18, 1}, {IPPROTO_IP, 20, 1}, {IPPROTO_IP, 23, 1},
    {IPPROTO_IP, 24, 1}, {IPPROTO_IP, 25, 1}, {IPPROTO_IP, 26, 1}, {IPPROTO_IP, 34, 0}, {IPPROTO_IP, 49, 0},
    {IPPROTO_IP, 51, 0x4e204e1f}, {IPPROTO_IP, IP_FREEBIND, 1}, {IPPROTO_IP, IP_TRANSPARENT, 1},
    {IPPROTO_TCP, TCP_NODELAY, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 111}, {IPPROTO_TCP, TCP_KEEPINTVL, 12}, {IPPROTO_TCP, TCP_KEEPCNT, 7},
    {IPPROTO_TCP, TCP_SYNCNT, 4}, {IPPROTO_TCP, TCP_LINGER2, 33}, {IPPROTO_TCP, 16, 1}, {IPPROTO_TCP, TCP_USER_TIMEOUT, 99000},
    {IPPROTO_TCP, 25, 123456}, {IPPROTO_TCP, 27, 1}, {IPPROTO_TCP, 36, 1}, {IPPROTO_TCP, 37, 10}, {IPPROTO_TCP, 44, 60000},
    {IPPROTO_TCP, 45, 150000}, {IPPROTO_TCP, 46, 30000}, {SOL_SOCKET, SO_PRIORITY, 5},
};

/* The same of a socket of IPv6. */
static const struct number sixes[] = {
    {IPPROTO_IPV6, 67, 0x48}, {IPPROTO_IPV6, 16, 202}, {IPPROTO_IPV6, 19, 0}, {IPPROTO_IPV6, 23, 2},
    {IPPROTO_IPV6, 25, 1}, {IPPROTO_IPV6, 29, 0}, {IPPROTO_IPV6, 31, 1}, {IPPROTO_IPV6, 33, 1}, {IPPROTO_IPV6, 49, 1}, {IPPROTO_IPV6, 51, 1},
    {IPPROTO_IPV6, 53, 1}, {IPPROTO_IPV6, 56, 1}, {IPPROTO_IPV6, 58, 1}, {IPPROTO_IPV6, 60, 1}, {IPPROTO_IPV6, 62, 1}, {IPPROTO_IPV6, 66, 1},
    {IPPROTO_IPV6, 70, 1}, {IPPROTO_IPV6, 72, 1}, {IPPROTO_IPV6, 73, 4}, {IPPROTO_IPV6, 74, 1}, {IPPROTO_IPV6, 77, 1}, {IPPROTO_IPV6, 78, 1},
};

static const struct number own[] = {
    {IPPROTO_IP, IP_TOS, 0x28}, {IPPROTO_IP, IP_TTL, 155}, {IPPROTO_IP, 21, 2}, {IPPROTO_TCP, TCP_NODELAY, 1}, {IPPROTO_TCP, TCP_KEEPIDLE, 222},
    {IPPROTO_TCP, TCP_USER_TIMEOUT, 88000}, {SOL_SOCKET, SO_KEEPALIVE, 1}, {SOL_SOCKET, SO_MARK, 78}, {SOL_SOCKET, SO_PRIORITY, 4},
    {SOL_SOCKET, SO_OOBINLINE, 1}, {SOL_SOCKET, SO_SNDBUF, 100000}, {SOL_SOCKET, SO_RCVBUF, 50000}, {IPPROTO_TCP, 25, 7777},
    {IPPROTO_IPV6, 16, 156}, {IPPROTO_IPV6, 67, 0x28}, {IPPROTO_IPV6, 73, 2},
};

static void set_all(int fd, const struct number *options, size_t n)
{
    for (size_t i = 0; i < n; i++)
        (void)!setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof options[i].value);
}
#define SET(fd, options) set_all(fd, options, sizeof options / sizeof *options)

static void set_structures(int fd, int seconds, const char *congestion)
{
    struct linger linger = {1, seconds};
    struct timeval time = {seconds, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, congestion, (socklen_t)strlen(congestion));
}

/* What changes by itself, reads something away, or says what the connection is and not what was set. */
static int of_the_moment(int level, int name)
{
    static const struct number names[] = {
        {SOL_SOCKET, SO_ERROR, 0}, {SOL_SOCKET, 49, 0} /* SO_INCOMING_CPU */, {SOL_SOCKET, 55, 0} /* SO_MEMINFO */,
        {SOL_SOCKET, 56, 0} /* SO_INCOMING_NAPI_ID */, {SOL_SOCKET, 57, 0} /* SO_COOKIE */, {SOL_SOCKET, SO_PEERNAME, 0}, {SOL_SOCKET, 73, 0},
        {IPPROTO_TCP, TCP_INFO, 0}, {IPPROTO_TCP, TCP_QUICKACK, 0}, {IPPROTO_TCP, TCP_TIMESTAMP, 0}, {IPPROTO_TCP, TCP_WINDOW_CLAMP, 0},
        {IPPROTO_TCP, 19, 0}, {IPPROTO_TCP, 20, 0}, {IPPROTO_TCP, 21, 0}, {IPPROTO_TCP, 26, 0}, {IPPROTO_TCP, 28, 0}, {IPPROTO_TCP, 29, 0},
        {IPPROTO_TCP, 35, 0}, {IPPROTO_IP, 9, 0}, {IPPROTO_IP, 14, 0},
        /* An accepted socket has these from its peer's first packet. */
        {IPPROTO_IP, 33, 0} /* IP_MULTICAST_TTL */, {IPPROTO_IPV6, 18, 0} /* IPV6_MULTICAST_HOPS */, {IPPROTO_IPV6, 6, 0}, {IPPROTO_IPV6, 24, 0}, {IPPROTO_IPV6, 61, 0},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].level == level && names[i].name == name)
            return 1;
    return 0;
}

static void *serve(void *argument)
{
    static const int levels[] = {SOL_SOCKET, IPPROTO_IP, IPPROTO_TCP, IPPROTO_IPV6};
    int fd = (int)(long)argument;
    FILE *lines = fdopen(dup(fd), "r");
    char line[100];
    while (lines && fgets(line, sizeof line, lines)) {
        static __thread char answer[60000];
        size_t n = 0;
        if (strcmp(line, "set\n") == 0) {
            SET(fd, own);
            set_structures(fd, 44, "reno");
        }
        for (int l = 0; l < 4; l++) {
            for (int name = 1; name < 100; name++) {
                unsigned char value[24] = {0};
                socklen_t length = sizeof value;
                if (of_the_moment(levels[l], name) || getsockopt(fd, levels[l], name, value, &length) != 0)
                    continue;
                n += (size_t)snprintf(answer + n, sizeof answer - n, "%d/%d=", levels[l], name);
                for (socklen_t i = 0; i < length; i++)
                    n += (size_t)snprintf(answer + n, sizeof answer - n, "%02x", value[i]);
                answer[n++] = ' ';
            }
        }
        answer[n++] = '\n';
        (void)!write(fd, answer, n);
    }
    if (lines)
        fclose(lines);
    close(fd);
    return NULL;
}

int main(int argc, char **argv)
{
    const char *what = argc > 3 ? argv[3] : "plain";
    int six = argc > 2 && strcmp(argv[2], "6") == 0, one = 1;
    struct sockaddr_in6 at6 = {.sin6_family = AF_INET6, .sin6_port = htons((in_port_t)atoi(argv[1]))};
    struct sockaddr_in at4 = {.sin_family = AF_INET, .sin_port = at6.sin6_port};
    int listener = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (strcmp(what, "listener") == 0 || strcmp(what, "device") == 0) {
        SET(listener, listeners);
        if (six)
            SET(listener, sixes);
        set_structures(listener, 55, "cubic");
    }
    if (strcmp(what, "device") == 0 && setsockopt(listener, SOL_SOCKET, SO_BINDTODEVICE, argv[4], (socklen_t)strlen(argv[4])) != 0)
        die("SO_BINDTODEVICE");
    int seconds = 30, small = 500;
    if (strcmp(what, "deferred") == 0 && setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds) != 0)
        die("TCP_DEFER_ACCEPT");
    if (strcmp(what, "small") == 0 && setsockopt(listener, IPPROTO_TCP, TCP_MAXSEG, &small, sizeof small) != 0)
        die("TCP_MAXSEG");
    int bound = six ? bind(listener, (struct sockaddr *)&at6, sizeof at6) : bind(listener, (struct sockaddr *)&at4, sizeof at4);
    if (bound != 0 || listen(listener, 100) != 0)
        die("listen");
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        pthread_t thread;
        if (fd >= 0 && pthread_create(&thread, NULL, serve, (void *)(long)fd) == 0)
            pthread_detach(thread);
    }
}
