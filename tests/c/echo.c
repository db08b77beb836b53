/* A server that echoes, one blocking thread or one epoll loop, for the tests of the hooks.
 *
 * echo ADDRESS PORT blocking|epoll
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef COMPAT
#include "tcpr_compat.h"
#endif

static int listener;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void serve_blocking(void)
{
    for (;;) {
        char buffer[4096];
        ssize_t n;
        int nodelay = 0, fd = accept(listener, NULL, NULL);
        socklen_t length = sizeof nodelay;
        if (fd < 0)
            die("accept");
        /* Inherited from the listener, also by a recovered session. */
        getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &nodelay, &length);
        if (!nodelay)
            fprintf(stderr, "TCP_NODELAY was not inherited\n");
        while ((n = read(fd, buffer, sizeof buffer)) > 0)
            if (write(fd, buffer, (size_t)n) != n)
                die("write");
        close(fd);
    }
}

static void serve_events(void)
{
    int ep = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {EPOLLIN, {.fd = listener}}, events[16];
    fcntl(listener, F_SETFL, O_NONBLOCK);
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(ep, events, 16, -1);
        for (int i = 0; i < count; i++) {
            char buffer[4096];
            ssize_t n;
            int fd = events[i].data.fd;
            if (fd == listener) {
                /* One at a time: readiness must last as long as there are more. */
                fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (fd < 0) {
                    if (errno != EAGAIN)
                        die("accept4");
                    continue;
                }
                event.data.fd = fd;
                epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event);
                continue;
            }
            n = recv(fd, buffer, sizeof buffer, 0);
            if (n > 0) {
                if (send(fd, buffer, (size_t)n, MSG_NOSIGNAL) != n)
                    die("send");
            } else if (n == 0 || errno != EAGAIN) {
                close(fd);
            }
        }
    }
}

int main(int count, char **arguments)
{
    int one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET};
    if (count != 4)
        return 2;
    address.sin_port = htons((unsigned short)atoi(arguments[2]));
    inet_pton(AF_INET, arguments[1], &address.sin_addr);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0)
        die("bind");
    if (listen(listener, 100) != 0)
        die("listen");
    if (strcmp(arguments[3], "epoll") == 0)
        serve_events();
    serve_blocking();
}
