/* Checks tcpr_on_role_change. It runs as the program of `tcpr run`, on a member that is to become the master, and ends with 0 if
 * all is as it should be.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <tcpr.h>

static void check_at(int line, int so, const char *what)
{
    if (so)
        return;
    fprintf(stderr, "roles.c:%d: not so: %s (%s, %s)\n", line, what, strerror(errno), tcpr_strerror());
    abort();
}

#define check(so) check_at(__LINE__, (so), #so)

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

/* What a callback has heard. */
struct heard {
    int last, times, running;
    pthread_t by;
};

static void hear(int role, void *arg)
{
    struct heard *h = arg;

    pthread_mutex_lock(&mutex);
    h->last = role;
    h->times++;
    h->by = pthread_self();
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

/* Waits until a callback has been called for the n-th time. */
static void heard(struct heard *h, int n)
{
    struct timespec until;

    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 30;
    pthread_mutex_lock(&mutex);
    while (h->times < n)
        check(pthread_cond_timedwait(&changed, &mutex, &until) == 0);
    pthread_mutex_unlock(&mutex);
}

static void hear_master(struct heard *h)
{
    int n = 1;

    do
        heard(h, n++);
    while (h->last != TCPR_ROLE_MASTER);
}

/* A callback that removes itself. */
static void once(int role, void *arg)
{
    check(tcpr_off_role_change(once, arg) == 0);
    hear(role, arg);
}

/* A callback that takes its time. */
static void slow(int role, void *arg)
{
    struct heard *h = arg;

    __atomic_store_n(&h->running, 1, __ATOMIC_SEQ_CST);
    usleep(200000);
    hear(role, arg);
    __atomic_store_n(&h->running, 0, __ATOMIC_SEQ_CST);
}

/* A callback that registers another one. */
static void another(int role, void *arg)
{
    struct heard *h = arg;

    check(tcpr_on_role_change(hear, h + 1) == 0);
    hear(role, arg);
}

/* A callback that ends its thread. */
static void ending(int role, void *arg)
{
    hear(role, arg);
    pthread_exit(NULL);
}

/* A callback that forks, and a child that returns from it. */
static void forking(int role, void *arg)
{
    pid_t child = fork();
    int status;

    check(child >= 0);
    if (child == 0) {
        check(tcpr_off_role_change(hear, arg) == -1 && errno == ENOENT);
        return;
    }
    check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    hear(role, arg);
}

static void *remove_it(void *arg)
{
    check(tcpr_off_role_change(slow, arg) == 0);
    return NULL;
}

/* From now on no thread of this process may do anything but wait for a lock, write and end. */
static void lock_in(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_futex, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };

    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0);
}

int main(void)
{
    struct heard a = { 0 }, b = { 0 }, c = { 0 }, two[2] = { { 0 } };
    sigset_t mask;
    pthread_t thread;
    pid_t child;
    int status, i;

    check(tcpr_on_role_change(hear, &a) == -1 && errno == ENOTCONN);
    check(tcpr_init(NULL) == 0);
    check(tcpr_on_role_change(NULL, &a) == -1 && errno == EFAULT);
    check(tcpr_off_role_change(hear, &a) == -1 && errno == ENOENT);

    /* The role of the moment is told, and then others, by one thread. The pair of callback and argument counts. */
    errno = 42;
    check(tcpr_on_role_change(hear, &a) == 0 && errno == 42);
    check(tcpr_on_role_change(hear, &a) == -1 && errno == EEXIST);
    check(tcpr_on_role_change(hear, &b) == 0);
    hear_master(&a);
    hear_master(&b);
    check(tcpr_get_role() == TCPR_ROLE_MASTER && tcpr_wait_role(TCPR_ROLE_MASTER, 0) == 0);
    check(pthread_equal(a.by, b.by) && !pthread_equal(a.by, pthread_self()));
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    check(!sigismember(&mask, SIGTERM) && !sigismember(&mask, SIGUSR1));

    /* Nothing is told twice, and what is removed is not told any more. */
    check(tcpr_off_role_change(hear, &b) == 0);
    check(tcpr_off_role_change(hear, &b) == -1 && errno == ENOENT);
    i = a.times;
    check(tcpr_on_role_change(once, &c) == 0);
    heard(&c, 1);
    check(c.last == TCPR_ROLE_MASTER && a.times == i && b.times > 0);

    /* Who removes a callback that runs waits for it. */
    memset(&b, 0, sizeof b);
    check(tcpr_on_role_change(slow, &b) == 0);
    while (!__atomic_load_n(&b.running, __ATOMIC_SEQ_CST))
        usleep(1000);
    check(pthread_create(&thread, NULL, remove_it, &b) == 0 && pthread_join(thread, NULL) == 0);
    check(b.times == 1 && !b.running);

    /* Callbacks make calls of the library. */
    check(tcpr_on_role_change(another, two) == 0);
    heard(&two[0], 1);
    heard(&two[1], 1);
    check(tcpr_off_role_change(another, two) == 0 && tcpr_off_role_change(hear, &two[1]) == 0);

    /* The child of a fork has none of its parent's, and may have its own. */
    child = fork();
    check(child >= 0);
    if (child == 0) {
        struct heard mine = { 0 };

        check(tcpr_off_role_change(hear, &a) == -1 && errno == ENOENT);
        check(tcpr_on_role_change(hear, &mine) == 0);
        heard(&mine, 1);
        check(mine.last == TCPR_ROLE_MASTER);
        _exit(0);
    }
    check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    memset(&b, 0, sizeof b);
    check(tcpr_on_role_change(forking, &b) == 0);
    heard(&b, 1);
    check(tcpr_off_role_change(forking, &b) == 0);

    /* A callback that ends the thread ends the calls, and nobody waits for it in vain; then there are others. */
    memset(&b, 0, sizeof b);
    memset(&c, 0, sizeof c);
    check(tcpr_on_role_change(ending, &b) == 0);
    heard(&b, 1);
    check(tcpr_off_role_change(ending, &b) == 0);
    check(tcpr_on_role_change(hear, &c) == 0);
    heard(&c, 1);
    check(c.last == TCPR_ROLE_MASTER && b.times == 1);
    check(tcpr_off_role_change(hear, &c) == 0 && tcpr_off_role_change(hear, &a) == 0);

    /* All are gone, and so is the thread; a new one is made when it is needed. */
    memset(&c, 0, sizeof c);
    check(tcpr_on_role_change(hear, &c) == 0);
    heard(&c, 1);

    /* The library's thread does nothing that a process has forbidden itself. */
    child = fork();
    check(child >= 0);
    if (child == 0) {
        struct heard mine = { 0 };
        time_t until;

        check(tcpr_on_role_change(hear, &mine) == 0);
        heard(&mine, 1);
        lock_in();
        for (until = time(NULL) + 2; time(NULL) < until;)
            ;
        syscall(SYS_exit_group, 0);
    }
    check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    fprintf(stderr, "roles: all is well\n");
    return 0;
}
