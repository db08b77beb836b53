/* Peers of `tcpr bench`: a process has descriptors for only so many, so there are several of these.
 *
 * usage: holder SOURCE ADDRESS PORT N
 *
 * Connects N times from the address SOURCE, has a message echoed over each connection, and says "ready". At each SIGUSR1
 * all of them ask, and "answered" is said when each has its answer. At the first mistake it says what it is, and ends.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static const char message[] = "are you there?";
static int *fds;
static int n;

static void lost(int i, const char *what)
{
    printf("lost: connection %d: %s: %s\n", i, what, errno ? strerror(errno) : "not what was sent");
    exit(1);
}

static void ask(int i)
{
    if (send(fds[i], message, sizeof message, MSG_NOSIGNAL) != sizeof message)
        lost(i, "send");
}

static void hear(int i)
{
    char back[sizeof message];

    errno = 0;
    if (recv(fds[i], back, sizeof back, MSG_WAITALL) != sizeof back || memcmp(back, message, sizeof back) != 0)
        lost(i, "recv");
}

static void make(int i, const struct sockaddr_in *from, const struct sockaddr_in *to)
{
    struct timeval patience = { .tv_sec = 60 };
    int one = 1;

    fds[i] = socket(AF_INET, SOCK_STREAM, 0);
    if (fds[i] < 0)
        lost(i, "socket");
    /* The port is chosen for the destination. */
    setsockopt(fds[i], IPPROTO_IP, 24 /* IP_BIND_ADDRESS_NO_PORT */, &one, sizeof one);
    setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fds[i], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fds[i], SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (bind(fds[i], (const struct sockaddr *)from, sizeof *from) < 0)
        lost(i, "bind");
    if (connect(fds[i], (const struct sockaddr *)to, sizeof *to) < 0)
        lost(i, "connect");
    ask(i);
    hear(i);
}

int main(int argc, char **argv)
{
    struct sockaddr_in from = { .sin_family = AF_INET }, to = { .sin_family = AF_INET };
    sigset_t set;
    int i, s;

    if (argc != 5 || !inet_aton(argv[1], &from.sin_addr) || !inet_aton(argv[2], &to.sin_addr) || atoi(argv[4]) <= 0) {
        fprintf(stderr, "usage: holder SOURCE ADDRESS PORT N\n");
        return 2;
    }
    setlinebuf(stdout);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    to.sin_port = htons((unsigned short)atoi(argv[3]));
    n = atoi(argv[4]);
    fds = calloc((size_t)n, sizeof *fds);
    if (fds == NULL)
        lost(0, "calloc");
    for (i = 0; i < n; i++)
        make(i, &from, &to);
    puts("ready");
    while (sigwait(&set, &s) == 0) {
        for (i = 0; i < n; i++)
            ask(i);
        for (i = 0; i < n; i++)
            hear(i);
        puts("answered");
    }
    return 1;
}
