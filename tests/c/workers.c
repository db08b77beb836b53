/* workers PORT LOG: a server whose main thread hands each request to a worker, and each worker gets its work in another way;
 * the first word of a request says by which. A worker reads the line, adds it to the file LOG, answers with the line, and
 * waits for more. "relay" is two workers: one reads, and the other one answers. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <threads.h>
#include <unistd.h>

static int ep, record;

static void check(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(1);
    }
}

/* Work that waits in memory; how a worker learns of it differs. */
static struct queue {
    pthread_mutex_t lock;
    int fds[4096];
    unsigned head, tail;
} queues[16];

static void put(struct queue *q, int fd)
{
    pthread_mutex_lock(&q->lock);
    q->fds[q->tail++ % 4096] = fd;
    pthread_mutex_unlock(&q->lock);
}

static int get(struct queue *q)
{
    int fd = -1;
    pthread_mutex_lock(&q->lock);
    if (q->head != q->tail)
        fd = q->fds[q->head++ % 4096];
    pthread_mutex_unlock(&q->lock);
    return fd;
}

/* The channels. */
static int a_pipe[2], pair[2], event, message_set, semaphores, stream[2], relay[2];
static FILE *words;
static mqd_t messages;
static pthread_barrier_t barrier;
static cnd_t condition;
static mtx_t condition_lock;
static int condition_queue[4096];
static unsigned condition_head, condition_tail;
static _Atomic int bare_word;
static pthread_mutex_t baton = PTHREAD_MUTEX_INITIALIZER, taken = PTHREAD_MUTEX_INITIALIZER;
static int baton_fd = -1;

enum { PIPE, PAIR, EVENT, MQ, SYSV, SEM, BARRIER, CND, THRD, STDIO, BARE, MUTEX, RELAY, KINDS };
static const char *names[KINDS] = {"pipe", "pair", "event", "mq", "sysv", "sem", "barrier", "cnd", "thrd", "stdio", "bare", "mutex", "relay"};

struct message {
    long kind;
    int fd;
};

/* A system call that no library can see. */
static long call(long number, long a, long b, long c, long d)
{
#ifdef __x86_64__
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = 0;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
    return result;
#else
    return syscall(number, a, b, c, d, 0);
#endif
}

/* Main: hands a connection to the worker of a kind. */
static void hand(int kind, int fd)
{
    switch (kind) {
    case PIPE: check(write(a_pipe[1], &fd, sizeof fd) == sizeof fd, "pipe"); break;
    case PAIR: check(send(pair[1], &fd, sizeof fd, 0) == sizeof fd, "pair"); break;
    case EVENT: put(&queues[kind], fd); eventfd_write(event, 1); break;
    case MQ: check(mq_send(messages, (char *)&fd, sizeof fd, 0) == 0, "mq_send"); break;
    case SYSV: check(msgsnd(message_set, &(struct message){1, fd}, sizeof(int), 0) == 0, "msgsnd"); break;
    case SEM: put(&queues[kind], fd); check(semop(semaphores, &(struct sembuf){0, 1, 0}, 1) == 0, "semop"); break;
    case BARRIER: put(&queues[kind], fd); pthread_barrier_wait(&barrier); break;
    case CND:
        mtx_lock(&condition_lock);
        condition_queue[condition_tail++ % 4096] = fd;
        cnd_signal(&condition);
        mtx_unlock(&condition_lock);
        break;
    case THRD: put(&queues[kind], fd); break;
    case STDIO: check(dprintf(stream[1], "%d\n", fd) > 0, "stdio"); break;
    case BARE:
        put(&queues[kind], fd);
        atomic_fetch_add(&bare_word, 1);
        call(SYS_futex, (long)&bare_word, FUTEX_WAKE, 1, 0);
        break;
    case MUTEX:
        pthread_mutex_lock(&taken);
        baton_fd = fd;
        pthread_mutex_unlock(&baton);
        break;
    case RELAY: check(write(relay[1], &fd, sizeof fd) == sizeof fd, "relay"); break;
    }
}

/* A worker: waits for a connection in its own way. */
static int await(int kind)
{
    int fd = -1;
    switch (kind) {
    case PIPE: check(read(a_pipe[0], &fd, sizeof fd) == sizeof fd, "pipe"); break;
    case PAIR: check(recv(pair[0], &fd, sizeof fd, 0) == sizeof fd, "pair"); break;
    case EVENT:
        while ((fd = get(&queues[kind])) < 0)
            eventfd_read(event, &(eventfd_t){0});
        break;
    case MQ: check(mq_receive(messages, (char *)&fd, sizeof fd, NULL) == sizeof fd, "mq_receive"); break;
    case SYSV: {
        struct message m;
        check(msgrcv(message_set, &m, sizeof(int), 0, 0) == sizeof(int), "msgrcv");
        fd = m.fd;
        break;
    }
    case SEM: check(semop(semaphores, &(struct sembuf){0, -1, 0}, 1) == 0, "semop"); fd = get(&queues[kind]); break;
    case BARRIER: pthread_barrier_wait(&barrier); fd = get(&queues[kind]); break;
    case CND:
        mtx_lock(&condition_lock);
        while (condition_head == condition_tail)
            cnd_wait(&condition, &condition_lock);
        fd = condition_queue[condition_head++ % 4096];
        mtx_unlock(&condition_lock);
        break;
    case THRD:
        while ((fd = get(&queues[kind])) < 0)
            thrd_sleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        break;
    case STDIO: check(fscanf(words, "%d", &fd) == 1, "stdio"); break;
    case BARE:
        for (;;) {
            int seen = atomic_load(&bare_word);
            if ((fd = get(&queues[kind])) >= 0)
                break;
            call(SYS_futex, (long)&bare_word, FUTEX_WAIT, seen, 0);
        }
        break;
    case MUTEX:
        pthread_mutex_lock(&baton);
        fd = baton_fd;
        pthread_mutex_unlock(&taken);
        break;
    case RELAY: check(read(relay[0], &fd, sizeof fd) == sizeof fd, "relay"); break;
    }
    return fd;
}

static ssize_t take(int fd, char *line, size_t size)
{
    ssize_t n = recv(fd, line, size, 0);
    if (n <= 0) {
        close(fd);
        return n;
    }
    check(write(record, line, (size_t)n) == n, "log");
    return n;
}

static void answer(int fd, const char *line, size_t n)
{
    check(send(fd, line, n, MSG_NOSIGNAL) == (ssize_t)n || errno == EPIPE || errno == ECONNRESET, "send");
    epoll_ctl(ep, EPOLL_CTL_MOD, fd, &(struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.fd = fd});
}

struct job {
    int fd;
    ssize_t n;
    char line[256];
};
static int jobs[2];

static void *work(void *argument)
{
    int kind = (int)(long)argument;
    struct job job;
    for (;;) {
        job.fd = await(kind);
        if ((job.n = take(job.fd, job.line, sizeof job.line)) <= 0)
            continue;
        if (kind == RELAY)
            check(write(jobs[1], &job, sizeof job) == sizeof job, "jobs");
        else
            answer(job.fd, job.line, (size_t)job.n);
    }
    return NULL;
}

static void *answer_others(void *argument)
{
    struct job job;
    while (recv(jobs[0], &job, sizeof job, MSG_WAITALL) == sizeof job)
        answer(job.fd, job.line, (size_t)job.n);
    return argument;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    /* Queues and semaphores of System V outlive their process, but not this. */
    check(unshare(CLONE_NEWIPC) == 0, "unshare");
    record = open(argv[2], O_WRONLY | O_CREAT | O_APPEND, 0644);
    check(record >= 0, argv[2]);
    char name[64];
    snprintf(name, sizeof name, "/tcpr-workers-%d", getpid());
    struct mq_attr attributes = {.mq_maxmsg = 8, .mq_msgsize = sizeof(int)};
    check((messages = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes)) != (mqd_t)-1, "mq_open");
    mq_unlink(name);
    check(pipe(a_pipe) == 0 && pipe(stream) == 0 && pipe(relay) == 0, "pipe");
    check(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, jobs) == 0, "socketpair");
    check((words = fdopen(stream[0], "r")) != NULL, "fdopen");
    check((event = eventfd(0, 0)) >= 0, "eventfd");
    check((message_set = msgget(IPC_PRIVATE, 0600)) >= 0, "msgget");
    check((semaphores = semget(IPC_PRIVATE, 1, 0600)) >= 0, "semget");
    pthread_barrier_init(&barrier, NULL, 2);
    cnd_init(&condition);
    mtx_init(&condition_lock, mtx_plain);
    pthread_mutex_lock(&baton);
    for (int i = 0; i < 16; i++)
        pthread_mutex_init(&queues[i].lock, NULL);

    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    check(bind(listener, (struct sockaddr *)&here, sizeof here) == 0 && listen(listener, 64) == 0, "listen");
    ep = epoll_create1(0);
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &(struct epoll_event){.events = EPOLLIN, .data.fd = listener});
    for (long kind = 0; kind < KINDS; kind++) {
        pthread_t thread;
        check(pthread_create(&thread, NULL, work, (void *)kind) == 0, "thread");
    }
    pthread_t thread;
    check(pthread_create(&thread, NULL, answer_others, NULL) == 0, "thread");
    for (;;) {
        struct epoll_event e;
        if (epoll_wait(ep, &e, 1, -1) != 1)
            continue;
        int fd = e.data.fd;
        if (fd == listener) {
            if ((fd = accept(listener, NULL, NULL)) >= 0)
                epoll_ctl(ep, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.fd = fd});
            continue;
        }
        char word[32] = "";
        ssize_t n = recv(fd, word, sizeof word - 1, MSG_PEEK | MSG_DONTWAIT);
        int kind = 0;
        while (kind < KINDS && strncmp(word, names[kind], strcspn(word, " ")) != 0)
            kind++;
        if (n <= 0 || kind == KINDS)
            close(fd);
        else
            hand(kind, fd);
    }
}
