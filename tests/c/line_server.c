/* line_server PORT WAY: answers each line with the same line, in one of the ways in which servers are built.
 *
 *   pool    one thread waits and reads, four others answer
 *   pair    for each connection one thread that reads and one that writes
 *   stdio   a thread for each connection, fgets and fprintf on a FILE, closed by fclose
 *   spawn   a thread for each connection that runs a command for each line (vfork, posix_spawn, system)
 *   fork    a process for each connection
 *   prefork four processes that accept from one listener
 *   greet   a thread for each connection, which says hello first
 *   lazy    a thread for each connection, which waits to be accepted, and few may wait
 *   once    a thread for each connection, which is closed after one answer
 *   rude    the same, though there is more to read
 *   mortal  a thread for each connection; dies of the line "die"
 *   keep    a thread for each connection, which asks silent clients whether they are still there
 *   defer   a thread for each connection, which is accepted when its client has said something (TCP_DEFER_ACCEPT)
 *   setuid  a thread for each connection, of a server that is nobody once it has bound its port; exits when told to end
 *
 * A client sends its next line when it has the answer to the last one. And two that know no lines:
 *
 *   frames  answers each message (its length in two bytes, high byte first, then as many bytes) with the same
 *   sink    reads to the end, then says how many bytes came, and their FNV-1a hash
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <grp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST 70000 /* bytes of a line */

extern char **environ;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* What has come of a line. */
struct buffer {
    size_t length;
    char bytes[MOST];
};

/* Reads more. Returns the length of a whole line, 0 if there is none yet, -1 at the end. */
static ssize_t more(int fd, struct buffer *b)
{
    ssize_t n = read(fd, b->bytes + b->length, sizeof b->bytes - b->length);
    if (n <= 0)
        return -1;
    b->length += (size_t)n;
    return b->bytes[b->length - 1] == '\n' ? (ssize_t)b->length : 0;
}

static int write_all(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, bytes, length);
        if (n < 0)
            return -1;
        bytes += n;
        length -= (size_t)n;
    }
    return 0;
}

static void start(void *(*f)(void *), void *argument)
{
    pthread_t t;
    pthread_attr_t a;
    pthread_attr_init(&a);
    pthread_attr_setdetachstate(&a, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&a, 256 << 10);
    if ((errno = pthread_create(&t, &a, f, argument)) != 0)
        die("pthread_create");
}

/* ---- pool ---- */

struct job {
    struct job *next;
    int fd;
    size_t length;
    char bytes[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t some = PTHREAD_COND_INITIALIZER;
static struct job *jobs;

static void *worker(void *unused)
{
    (void)unused;
    for (;;) {
        pthread_mutex_lock(&lock);
        while (!jobs)
            pthread_cond_wait(&some, &lock);
        struct job *j = jobs;
        jobs = j->next;
        pthread_mutex_unlock(&lock);
        write_all(j->fd, j->bytes, j->length);
        free(j);
    }
    return NULL;
}

static void pool(int listener)
{
    static struct buffer *of[1024];
    int ep = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &ev);
    for (int i = 0; i < 4; i++)
        start(worker, NULL);
    for (;;) {
        struct epoll_event events[16];
        int n = epoll_wait(ep, events, 16, -1);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) {
                int c = accept(listener, NULL, NULL);
                if (c < 0 || c >= 1024)
                    continue;
                of[c] = malloc(sizeof *of[c]);
                of[c]->length = 0;
                struct epoll_event in = {.events = EPOLLIN, .data.fd = c};
                epoll_ctl(ep, EPOLL_CTL_ADD, c, &in);
                continue;
            }
            ssize_t length = more(fd, of[fd]);
            if (length < 0) {
                /* Its last answer is out: the client asks one at a time. */
                free(of[fd]);
                close(fd);
            } else if (length > 0) {
                struct job *j = malloc(sizeof *j + (size_t)length);
                j->fd = fd;
                j->length = (size_t)length;
                memcpy(j->bytes, of[fd]->bytes, j->length);
                of[fd]->length = 0;
                pthread_mutex_lock(&lock);
                j->next = jobs;
                jobs = j;
                pthread_cond_signal(&some);
                pthread_mutex_unlock(&lock);
            }
        }
    }
}

/* ---- pair ---- */

struct pair {
    int fd;
    int pipe[2];
};

static void *pair_writes(void *argument)
{
    struct pair *p = argument;
    char bytes[4096];
    ssize_t n;
    while ((n = read(p->pipe[0], bytes, sizeof bytes)) > 0)
        write_all(p->fd, bytes, (size_t)n);
    close(p->pipe[0]);
    close(p->fd);
    free(p);
    return NULL;
}

static void *pair_reads(void *argument)
{
    struct pair *p = argument;
    int fd = p->fd, out = p->pipe[1];
    char bytes[4096];
    ssize_t n;
    while ((n = read(fd, bytes, sizeof bytes)) > 0)
        write_all(out, bytes, (size_t)n);
    close(out);
    return NULL;
}

static void pair(int fd)
{
    struct pair *p = malloc(sizeof *p);
    p->fd = fd;
    if (pipe(p->pipe) < 0)
        die("pipe");
    start(pair_writes, p);
    start(pair_reads, p);
}

/* ---- one thread or process each ---- */

static void *with_stdio(void *argument)
{
    int fd = (int)(long)argument;
    FILE *in = fdopen(fd, "r"), *out = fdopen(dup(fd), "w");
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, in) > 0) {
        fprintf(out, "%s", line);
        fflush(out);
    }
    free(line);
    fclose(out);
    fclose(in);
    return NULL;
}

static void run_a_command(int which)
{
    char *arguments[] = {"true", NULL};
    pid_t child;
    if (which == 0) {
        child = vfork();
        if (child == 0) {
            execv("/bin/true", arguments);
            _exit(127);
        }
        waitpid(child, NULL, 0);
    } else if (which == 1) {
        if (posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environ) == 0)
            waitpid(child, NULL, 0);
    } else if (system("true") < 0) {
        die("system");
    }
}

static void serve(int fd, int commands)
{
    struct buffer *b = malloc(sizeof *b);
    b->length = 0;
    ssize_t length;
    int which = 0;
    while ((length = more(fd, b)) >= 0) {
        if (length == 0)
            continue;
        if (commands)
            run_a_command(which++ % 3);
        if (write_all(fd, b->bytes, (size_t)length) < 0)
            break;
        b->length = 0;
    }
    free(b);
    close(fd);
}

static void *with_lines(void *argument)
{
    serve((int)(long)argument, 0);
    return NULL;
}

static void *with_commands(void *argument)
{
    serve((int)(long)argument, 1);
    return NULL;
}

static void *with_one_answer(void *argument)
{
    int fd = (int)(long)argument;
    struct buffer *b = malloc(sizeof *b);
    b->length = 0;
    ssize_t length;
    while ((length = more(fd, b)) == 0)
        ;
    if (length > 0)
        write_all(fd, b->bytes, (size_t)length);
    free(b);
    close(fd);
    return NULL;
}

/* Answers the first line and closes; what came behind it is unread. */
static void *without_manners(void *argument)
{
    int fd = (int)(long)argument;
    char line[200];
    size_t length = 0;
    while (length < sizeof line && read(fd, line + length, 1) == 1)
        if (line[length++] == '\n')
            break;
    write_all(fd, line, length);
    close(fd);
    return NULL;
}

static void *that_can_be_killed(void *argument)
{
    int fd = (int)(long)argument;
    struct buffer *b = malloc(sizeof *b);
    b->length = 0;
    ssize_t length;
    while ((length = more(fd, b)) >= 0) {
        if (length == 0)
            continue;
        if (length == 4 && memcmp(b->bytes, "die\n", 4) == 0)
            abort();
        if (write_all(fd, b->bytes, (size_t)length) < 0)
            break;
        b->length = 0;
    }
    free(b);
    close(fd);
    return NULL;
}

static void *with_keepalive(void *argument)
{
    int fd = (int)(long)argument, on = 1, idle = 1, interval = 1, count = 3;
    unsigned patience = 5000;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
    /* And who has yet to acknowledge something is asked no question. */
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &patience, sizeof patience);
    serve(fd, 0);
    return NULL;
}

static void *with_greeting(void *argument)
{
    int fd = (int)(long)argument;
    write_all(fd, "hello\n", 6);
    serve(fd, 0);
    return NULL;
}

static void *with_frames(void *argument)
{
    int fd = (int)(long)argument;
    struct buffer *b = malloc(sizeof *b);
    b->length = 0;
    ssize_t n;
    while ((n = read(fd, b->bytes + b->length, sizeof b->bytes - b->length)) > 0) {
        b->length += (size_t)n;
        size_t whole = 0;
        for (;;) {
            const unsigned char *at = (const unsigned char *)b->bytes + whole;
            size_t left = b->length - whole;
            size_t length = left < 2 ? 2 : 2 + ((size_t)at[0] << 8 | at[1]);
            if (left < length)
                break;
            whole += length;
        }
        if (write_all(fd, b->bytes, whole) < 0)
            break;
        memmove(b->bytes, b->bytes + whole, b->length - whole);
        b->length -= whole;
    }
    free(b);
    close(fd);
    return NULL;
}

static void *with_sink(void *argument)
{
    int fd = (int)(long)argument;
    unsigned char bytes[4096];
    char answer[64];
    unsigned long long hash = 0xcbf29ce484222325, count = 0;
    ssize_t n;
    while ((n = read(fd, bytes, sizeof bytes)) > 0) {
        count += (unsigned long long)n;
        for (ssize_t i = 0; i < n; i++)
            hash = (hash ^ bytes[i]) * 0x100000001b3;
    }
    int length = snprintf(answer, sizeof answer, "%llu %016llx\n", count, hash);
    write_all(fd, answer, (size_t)length);
    close(fd);
    return NULL;
}

static volatile sig_atomic_t ended;

static void end(int signal)
{
    (void)signal;
    ended = 1;
}

/* For good: it cannot become root again. */
static void become_nobody(void)
{
    if (setgroups(0, NULL) < 0 || setgid(65534) < 0 || setuid(65534) < 0)
        die("setuid");
    if (setuid(0) == 0 || getuid() != 65534 || geteuid() != 65534 || getegid() != 65534) {
        fprintf(stderr, "still privileged\n");
        exit(1);
    }
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: line_server PORT pool|pair|stdio|spawn|fork|prefork|greet|lazy|once|rude|mortal|keep|defer|setuid|frames|sink\n");
        return 2;
    }
    const char *way = argv[2];
    /* For both families. */
    int listener = socket(AF_INET6, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in6 at = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)atoi(argv[1]))};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0)
        die("bind");
    if (strcmp(way, "setuid") == 0) {
        struct sigaction told = {.sa_handler = end};
        sigaction(SIGTERM, &told, NULL);
        become_nobody();
    }
    int lazy = strcmp(way, "lazy") == 0, defer = strcmp(way, "defer") == 0, patience = 30;
    if (defer && setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &patience, sizeof patience) < 0)
        die("TCP_DEFER_ACCEPT");
    if (listen(listener, lazy ? 1 : 64) < 0)
        die("listen");
    signal(SIGPIPE, SIG_IGN);
    if (strcmp(way, "pool") == 0)
        pool(listener);
    if (strcmp(way, "fork") == 0)
        signal(SIGCHLD, SIG_IGN);
    if (strcmp(way, "prefork") == 0)
        for (int i = 0; i < 3; i++)
            if (fork() == 0)
                break;
    for (;;) {
        if (lazy)
            usleep(50000);
        int fd = accept(listener, NULL, NULL);
        if (ended)
            return 0;
        if (fd < 0) {
            if (errno == EINTR || errno == ECONNABORTED)
                continue;
            die("accept");
        }
        if (strcmp(way, "pair") == 0) {
            pair(fd);
        } else if (lazy || defer || strcmp(way, "setuid") == 0) {
            start(with_lines, (void *)(long)fd);
        } else if (strcmp(way, "stdio") == 0) {
            start(with_stdio, (void *)(long)fd);
        } else if (strcmp(way, "spawn") == 0) {
            start(with_commands, (void *)(long)fd);
        } else if (strcmp(way, "greet") == 0) {
            start(with_greeting, (void *)(long)fd);
        } else if (strcmp(way, "once") == 0) {
            start(with_one_answer, (void *)(long)fd);
        } else if (strcmp(way, "rude") == 0) {
            start(without_manners, (void *)(long)fd);
        } else if (strcmp(way, "mortal") == 0) {
            start(that_can_be_killed, (void *)(long)fd);
        } else if (strcmp(way, "keep") == 0) {
            start(with_keepalive, (void *)(long)fd);
        } else if (strcmp(way, "frames") == 0) {
            start(with_frames, (void *)(long)fd);
        } else if (strcmp(way, "sink") == 0) {
            start(with_sink, (void *)(long)fd);
        } else if (strcmp(way, "prefork") == 0) {
            serve(fd, 0);
        } else if (fork() == 0) {
            close(listener);
            serve(fd, 0);
            _exit(0);
        } else {
            close(fd);
        }
    }
}
