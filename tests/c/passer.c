/* passer PORT WAY: answers each line with the same line. One process accepts the connections and gives each, as a message
 * (SCM_RIGHTS), to one of two others that were made before anything was known of tcpr; they serve all that they have.
 *
 *   plain   sent and closed by the sender
 *   keep    the sender keeps its copy until it is told that the other is done with it
 *   dup     a copy is sent, and both are closed
 *   twice   sent twice in one message, and once more to the sender itself, which drops that
 *   many    by sendmmsg and recvmmsg
 *   late    sent and closed; the other reads the message a moment later
 *   fork    the receiver forks a process for each, and closes its own
 *   pass    the receiver passes it on to a third one
 *   half    the sender reads the first half of each line, and sends that with the connection
 *   drop    each second one lies in a message that nobody reads: its socket is closed, and so is the connection
 *   raw     the message is sent by number: no hook sees it
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *way;

static int is(const char *name)
{
    return strcmp(way, name) == 0;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

struct parcel {
    struct msghdr m;
    struct iovec v;
    char bytes[64];
    char control[CMSG_SPACE(2 * sizeof(int))];
};

/* A message with one descriptor, or the same one twice. */
static void pack(struct parcel *p, int fd, int copies, const char *bytes, size_t length)
{
    memset(p, 0, sizeof *p);
    memcpy(p->bytes, bytes, length);
    p->v = (struct iovec){p->bytes, length};
    p->m = (struct msghdr){.msg_iov = &p->v, .msg_iovlen = 1, .msg_control = p->control};
    p->m.msg_controllen = CMSG_SPACE((size_t)copies * sizeof fd);
    struct cmsghdr *h = CMSG_FIRSTHDR(&p->m);
    h->cmsg_level = SOL_SOCKET;
    h->cmsg_type = SCM_RIGHTS;
    h->cmsg_len = CMSG_LEN((size_t)copies * sizeof fd);
    for (int i = 0; i < copies; i++)
        memcpy(CMSG_DATA(h) + (size_t)i * sizeof fd, &fd, sizeof fd);
}

static void give(int to, int fd, int copies, const char *bytes, size_t length)
{
    struct parcel p;
    pack(&p, fd, copies, bytes, length);
    ssize_t sent;
    if (is("many")) {
        struct mmsghdr mm = {.msg_hdr = p.m};
        sent = sendmmsg(to, &mm, 1, 0);
    } else if (is("raw")) {
        sent = syscall(SYS_sendmsg, to, &p.m, 0);
    } else {
        sent = sendmsg(to, &p.m, 0);
    }
    if (sent < 0)
        die("sendmsg");
}

/* The connection in a message, -1 at the end. */
static int take(int from, char *bytes, size_t *length)
{
    struct parcel p;
    pack(&p, -1, 2, "", 0);
    p.v.iov_len = sizeof p.bytes;
    ssize_t n;
    if (is("many")) {
        struct mmsghdr mm = {.msg_hdr = p.m};
        n = recvmmsg(from, &mm, 1, 0, NULL) == 1 ? (ssize_t)mm.msg_len : -1;
        p.m = mm.msg_hdr;
    } else {
        n = recvmsg(from, &p.m, 0);
    }
    if (n <= 0)
        return -1;
    memcpy(bytes, p.bytes, (size_t)n);
    *length = (size_t)n;
    int fds[2] = {-1, -1};
    struct cmsghdr *h = CMSG_FIRSTHDR(&p.m);
    if (h)
        memcpy(fds, CMSG_DATA(h), h->cmsg_len - CMSG_LEN(0));
    if (fds[1] >= 0)
        close(fds[1]);
    return fds[0];
}

struct client {
    size_t length;
    char bytes[70000];
};

static struct client *of[4096];

/* Serves one connection as far as it has come. 0 at its end. */
static int serve(int fd, int other)
{
    struct client *c = of[fd];
    ssize_t n = read(fd, c->bytes + c->length, sizeof c->bytes - c->length);
    if (n <= 0) {
        if (is("keep") && write(other, "x", 1) < 0)
            die("write");
        free(c);
        close(fd);
        return 0;
    }
    c->length += (size_t)n;
    if (c->bytes[c->length - 1] == '\n') {
        for (size_t at = 0; at < c->length; at += (size_t)n)
            if ((n = write(fd, c->bytes + at, c->length - at)) < 0)
                break;
        c->length = 0;
    }
    return 1;
}

static void welcome(int fd, const char *bytes, size_t length)
{
    of[fd] = malloc(sizeof *of[fd]);
    of[fd]->length = 0;
    if (is("half")) {
        memcpy(of[fd]->bytes, bytes, length);
        of[fd]->length = length;
    }
}

static void receiver(int from, int next)
{
    struct pollfd fds[1024] = {{.fd = from, .events = POLLIN}};
    int n = 1;
    for (;;) {
        poll(fds, (nfds_t)n, -1);
        if (fds[0].revents) {
            char bytes[64];
            size_t length;
            if (is("late"))
                usleep(30000);
            int fd = take(from, bytes, &length);
            while (fd < 0)
                /* The other is dead. Who exits now says that its clients are to be told. */
                pause();
            if (is("pass") && next >= 0) {
                give(next, fd, 1, bytes, length);
                close(fd);
            } else if (is("fork")) {
                if (fork() == 0) {
                    welcome(fd, bytes, length);
                    while (serve(fd, from))
                        ;
                    _exit(0);
                }
                close(fd);
            } else {
                welcome(fd, bytes, length);
                fds[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
            }
        }
        for (int i = 1; i < n; i++)
            if (fds[i].revents && !serve(fds[i].fd, from))
                fds[i--] = fds[--n];
    }
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: passer PORT WAY\n");
        return 2;
    }
    way = argv[2];
    signal(SIGCHLD, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    int to[2][2], third[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, third) < 0)
        die("socketpair");
    if (is("pass") && fork() == 0) {
        close(third[0]);
        receiver(third[1], -1);
    }
    for (int i = 0; i < 2; i++) {
        if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, to[i]) < 0)
            die("socketpair");
        if (fork() == 0) {
            close(to[i][0]);
            receiver(to[i][1], third[0]);
        }
        close(to[i][1]);
    }
    int listener = socket(AF_INET6, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)atoi(argv[1]))};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 64) < 0)
        die("listen");
    int kept[1024], n_kept = 0, unread[60], n_unread = 0;
    for (int i = 0;; i++) {
        /* One that is kept is closed when any other was done with. */
        struct pollfd p[64] = {{.fd = listener, .events = POLLIN}, {.fd = to[0][0], .events = POLLIN}, {.fd = to[1][0], .events = POLLIN}};
        for (int k = 0; k < n_unread; k++)
            p[3 + k] = (struct pollfd){.fd = unread[k], .events = POLLIN};
        poll(p, (nfds_t)(3 + n_unread), -1);
        for (int k = n_unread - 1; k >= 0; k--) {
            if (!p[3 + k].revents)
                continue;
            char bytes[2];
            int fd = unread[k];
            unread[k] = unread[--n_unread];
            ssize_t n = read(fd, bytes, sizeof bytes);
            if (n > 0)
                give(to[k % 2][0], fd, 1, bytes, (size_t)n);
            close(fd);
        }
        for (int w = 0; w < 2; w++) {
            char done;
            if (p[1 + w].revents & POLLIN && read(to[w][0], &done, 1) == 1) {
                for (int k = 0; k < n_kept; k++) {
                    /* Whose peer has ended is done with. */
                    struct pollfd end = {.fd = kept[k], .events = POLLRDHUP};
                    if (poll(&end, 1, 0) == 1 && end.revents & POLLRDHUP) {
                        close(kept[k]);
                        kept[k--] = kept[--n_kept];
                    }
                }
            }
        }
        if (!(p[0].revents & POLLIN))
            continue;
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        char bytes[64] = "x";
        size_t length = 1;
        if (is("half")) {
            unread[n_unread++] = fd;
            continue;
        }
        if (is("drop") && i % 2 == 1) {
            int nobody[2];
            if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, nobody) < 0)
                die("socketpair");
            give(nobody[0], fd, 1, bytes, length);
            close(fd);
            usleep(20000);
            close(nobody[0]);
            close(nobody[1]);
            continue;
        }
        int sent = is("dup") ? dup(fd) : fd;
        give(to[i % 2][0], sent, is("twice") ? 2 : 1, bytes, length);
        if (is("twice")) {
            int self[2];
            if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, self) < 0)
                die("socketpair");
            give(self[0], fd, 1, "x", 1);
            close(fd);
            close(take(self[1], bytes, &length));
            close(self[0]);
            close(self[1]);
        } else if (is("keep")) {
            kept[n_kept++] = fd;
        } else {
            if (sent != fd)
                close(sent);
            close(fd);
        }
    }
}
