/* raw_server PORT: answers each line with the same line, as a Go program does it: epoll, non-blocking sockets, and all
 * system calls by number. No library can tell what it does; that it is linked with the C library is a convenience. */
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define MOST 2048 /* connections */
#define LINE 4096

static long call(long number, long a, long b, long c, long d, long e)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                     : "rcx", "r11", "memory");
    return result;
}

static struct {
    size_t length;
    char bytes[LINE];
} of[MOST];

int main(int argc, char **argv)
{
    if (argc != 2)
        return 2;
    struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_port = htons((unsigned short)atoi(argv[1]))};
    int one = 1;
    long listener = call(SYS_socket, AF_INET6, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, 0, 0);
    call(SYS_setsockopt, listener, SOL_SOCKET, SO_REUSEADDR, (long)&one, sizeof one);
    if (call(SYS_bind, listener, (long)&here, sizeof here, 0, 0) < 0 || call(SYS_listen, listener, 512, 0, 0, 0) < 0)
        return 1;
    long ep = call(SYS_epoll_create1, EPOLL_CLOEXEC, 0, 0, 0, 0);
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = (int)listener};
    call(SYS_epoll_ctl, ep, EPOLL_CTL_ADD, listener, (long)&ev, 0);
    for (;;) {
        struct epoll_event events[64];
        long n = call(SYS_epoll_pwait, ep, (long)events, 64, -1, 0);
        for (long i = 0; i < n; i++) {
            long fd = events[i].data.fd;
            if (fd == listener) {
                long c;
                while ((c = call(SYS_accept4, listener, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) >= 0) {
                    if (c >= MOST)
                        return 1;
                    of[c].length = 0;
                    ev = (struct epoll_event){.events = EPOLLIN, .data.fd = (int)c};
                    call(SYS_epoll_ctl, ep, EPOLL_CTL_ADD, c, (long)&ev, 0);
                }
                continue;
            }
            long got = call(SYS_read, fd, (long)of[fd].bytes + (long)of[fd].length, LINE - (long)of[fd].length, 0, 0);
            if (got <= 0) {
                call(SYS_close, fd, 0, 0, 0, 0);
                continue;
            }
            of[fd].length += (size_t)got;
            if (of[fd].bytes[of[fd].length - 1] == '\n' || of[fd].length == LINE) {
                call(SYS_write, fd, (long)of[fd].bytes, (long)of[fd].length, 0, 0);
                of[fd].length = 0;
            }
        }
    }
}
