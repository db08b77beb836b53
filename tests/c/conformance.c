/* Prints what calls return, with their errno, for a list of cases on pipes, files and sockets. The output must
 * be the same whoever serves the calls: the C library alone; libtcpr preloaded or linked, with no manager; and
 * libtcpr preloaded with a manager for which ADDRESS:PORT is protected.
 *
 * conformance ADDRESS PORT
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef LINKED
#include "tcpr.h"
#define N(name) tcpr_##name
#else
#define N(name) name
#endif

/* A value that no call sets: success must leave it alone. */
#define UNTOUCHED 4242

#define T(label, call)                                                                                            \
    do {                                                                                                          \
        errno = UNTOUCHED;                                                                                        \
        long result_ = (long)(call);                                                                              \
        int errno_ = errno;                                                                                       \
        printf("%s: %s = %ld errno %d\n", section, label, result_, errno_);                                       \
        fflush(stdout);                                                                                           \
    } while (0)

/* As T, for calls whose exact count is the kernel's affair. */
#define SIGN(label, call) T(label, ((call) > 0 ? 1 : -1))

static const char *section = "";
static struct sockaddr_in there;
/* What the compiler must not see through. */
static void *volatile nothing = NULL;
static volatile int minus_one = -1, too_many = 1025;

static struct timespec milliseconds(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    return t;
}

static void rest(long ms)
{
    struct timespec t = milliseconds(ms);
    while (syscall(SYS_nanosleep, &t, &t) != 0)
        ;
}

static void on_signal(int number)
{
    (void)number;
}

static volatile sig_atomic_t broken_pipes;

static void on_broken_pipe(int number)
{
    (void)number;
    broken_pipes++;
}

static void handle(int number, void (*handler)(int), int flags)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = flags;
    sigaction(number, &action, NULL);
}

/* Memory that ends after the page's first half, in ways in which memory ends. */
struct half {
    const char *how;
    char *end;
};

static struct half halves[3];

static void make_halves(void)
{
    long page = sysconf(_SC_PAGESIZE);
    char name[] = "/tmp/tcpr-conformance-XXXXXX";
    int file = mkstemp(name);
    unlink(name);
    if (file < 0 || ftruncate(file, 2 * page) != 0)
        abort();
    char *unmapped = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *forbidden = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *truncated = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    munmap(unmapped + page, page);
    mprotect(forbidden + page, page, PROT_NONE);
    if (ftruncate(file, page) != 0)
        abort();
    close(file);
    halves[0] = (struct half){"unmapped", unmapped + page};
    halves[1] = (struct half){"forbidden", forbidden + page};
    halves[2] = (struct half){"truncated", truncated + page};
}

/* What is looked at lies there, wholly or in part. */
static void bad_memory(int fd)
{
    int mode = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, mode | O_NONBLOCK);
    for (int i = 0; i < 3; i++) {
        char *bad = halves[i].end, byte = 'x';
        struct iovec vector[2] = {{&byte, 1}, {bad, 1}}, *vectors = (struct iovec *)(bad - sizeof *vectors);
        struct msghdr message, *messages = (struct msghdr *)(bad - 8);
        memset(&message, 0, sizeof message);
        *vectors = (struct iovec){&byte, 1};
        T(halves[i].how, i);
        T("write", N(write)(fd, bad, 10));
        T("write half", N(write)(fd, bad - 10, 20));
        T("send", N(send)(fd, bad, 1, MSG_DONTWAIT | MSG_NOSIGNAL));
        T("sendto", N(sendto)(fd, bad - 1, 2, MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0));
        T("writev", N(writev)(fd, vector, 2));
        T("writev vector", N(writev)(fd, vectors, 2));
        T("writev all", N(writev)(fd, (struct iovec *)bad, 1));
        T("readv", N(readv)(fd, vectors, 2));
        T("sendmsg", N(sendmsg)(fd, messages, MSG_DONTWAIT | MSG_NOSIGNAL));
        T("recvmsg", N(recvmsg)(fd, messages, MSG_DONTWAIT));
        message.msg_iov = vectors;
        message.msg_iovlen = 2;
        T("sendmsg vector", N(sendmsg)(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
        T("recvmsg vector", N(recvmsg)(fd, &message, MSG_DONTWAIT));
        message.msg_iov = vector;
        T("sendmsg bytes", N(sendmsg)(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
        message.msg_iovlen = 1;
        message.msg_control = bad;
        message.msg_controllen = 64;
        T("sendmsg control", N(sendmsg)(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
        T("sendmmsg", sendmmsg(fd, (struct mmsghdr *)bad, 1, MSG_DONTWAIT | MSG_NOSIGNAL));
        T("connect", N(connect)(-1, (struct sockaddr *)bad, 16));
        T("bind", N(bind)(fd, (struct sockaddr *)(bad - 2), 16) < 0);
        T("setsockopt", N(setsockopt)(fd, SOL_SOCKET, SO_KEEPALIVE, bad, 4));
        T("nanosleep", nanosleep((struct timespec *)bad, NULL));
        T("epoll_pwait2", epoll_pwait2(fd, (struct epoll_event *)&message, 1, (struct timespec *)bad, NULL));
    }
    fcntl(fd, F_SETFL, mode);
}

/* Bad descriptors, bad pointers, bad counts: on anything at all. */
static void errors(int fd)
{
    char byte = 'x';
    struct iovec one = {&byte, 1};
    int mode = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, mode | O_NONBLOCK);
    T("read NULL", N(read)(fd, nothing, 1));
    T("write NULL", N(write)(fd, nothing, 1));
    T("read 0", N(read)(fd, &byte, 0));
    T("write 0", N(write)(fd, &byte, 0));
    T("writev NULL", N(writev)(fd, nothing, 1));
    T("writev -1", N(writev)(fd, &one, minus_one));
    T("writev 1025", N(writev)(fd, &one, too_many));
    T("readv -1", N(readv)(fd, &one, minus_one));
    T("readv 0", N(readv)(fd, &one, 0));
    T("sendmsg NULL", N(sendmsg)(fd, nothing, 0));
    T("recvmsg NULL", N(recvmsg)(fd, nothing, MSG_DONTWAIT));
    T("send NULL", N(send)(fd, nothing, 1, MSG_DONTWAIT | MSG_NOSIGNAL));
    T("recv DONTWAIT", N(recv)(fd, &byte, 1, MSG_DONTWAIT));
    T("recvfrom DONTWAIT", N(recvfrom)(fd, &byte, 1, MSG_DONTWAIT, NULL, NULL));
    T("accept", N(accept)(fd, NULL, NULL));
    T("accept4 bad flags", N(accept4)(fd, NULL, NULL, 0x55));
    T("listen", N(listen)(fd, 1) == 0 ? 0 : -1);
    T("shutdown bad", N(shutdown)(fd, 77));
    T("sendfile from nothing", N(sendfile)(fd, -1, NULL, 10));
    T("fcntl bad", fcntl(fd, 9999, 0));
    T("dup3 same", N(dup3)(fd, fd, 0));
    T("dup3 bad flags", N(dup3)(fd, 100, 0x77));
    T("dup2 to -1", N(dup2)(fd, -1));
    T("F_DUPFD beyond", fcntl(fd, F_DUPFD, INT_MAX));
    fcntl(fd, F_SETFL, mode);
}

static void bad_descriptors(void)
{
    int fds[] = {-1, 999, 1 << 30};
    for (size_t i = 0; i < sizeof fds / sizeof fds[0]; i++) {
        errors(fds[i]);
        T("close", N(close)(fds[i]));
        T("dup", N(dup)(fds[i]));
        T("dup2", N(dup2)(fds[i], 50));
        T("epoll_wait", N(epoll_wait)(fds[i], nothing, 1, 0));
        T("syscall close", syscall(SYS_close, fds[i]));
    }
}

static void pipes(void)
{
    int p[2];
    char buffer[100];
    struct iovec two[2] = {{buffer, 3}, {buffer + 10, 50}};
    T("pipe", pipe(p));
    T("write", N(write)(p[1], "hello", 5));
    T("read", N(read)(p[0], buffer, 3));
    T("readv", N(readv)(p[0], two, 2));
    T("writev", N(writev)(p[1], two, 2));
    T("readv", N(readv)(p[0], two, 2));
    T("nonblock", fcntl(p[0], F_SETFL, O_NONBLOCK));
    T("read empty", N(read)(p[0], buffer, 3));
    errors(p[0]);
    errors(p[1]);
    T("recv", N(recv)(p[0], buffer, 1, 0));
    T("dup", N(dup)(p[1]));
    T("dup2", N(dup2)(p[1], 60));
    T("dup3", N(dup3)(p[1], 61, O_CLOEXEC));
    T("F_DUPFD", fcntl(p[1], F_DUPFD, 70));
    T("F_DUPFD_CLOEXEC", fcntl(p[1], F_DUPFD_CLOEXEC, 70));
    T("F_GETFD", fcntl(71, F_GETFD));
    T("write dup", N(write)(60, "x", 1));
    T("close_range", close_range(60, 80, 0));
    T("close_range backwards", close_range(80, 60, 0));
    T("close_range bad flags", close_range(80, 81, 0x77));
    T("write closed", N(write)(60, "x", 1));
    T("close", N(close)(p[1]));
    T("close again", N(close)(p[1]));
    T("read one left", N(read)(p[0], buffer, 3));
    broken_pipes = 0;
    N(close)(p[0]);
    T("pipe", pipe(p));
    N(close)(p[0]);
    T("write broken", N(write)(p[1], "x", 1));
    T("signals", broken_pipes);
    N(close)(p[1]);
    closefrom(50);
    T("after closefrom", N(write)(60, "x", 1));
}

static void files(void)
{
    char name[] = "/tmp/tcpr-conformance-XXXXXX", buffer[100];
    int fd = mkstemp(name);
    struct iovec two[2] = {{"abc", 3}, {"defgh", 5}};
    off_t offset = 2;
    int p[2];
    unlink(name);
    T("writev", N(writev)(fd, two, 2));
    T("lseek", lseek(fd, 0, SEEK_SET));
    T("read", N(read)(fd, buffer, 100));
    T("read at the end", N(read)(fd, buffer, 100));
    T("pipe", pipe(p));
    T("sendfile offset", N(sendfile)(p[1], fd, &offset, 3));
    T("offset", offset);
    T("sendfile", N(sendfile)(p[1], fd, NULL, 3));
    T("sendfile from a pipe", N(sendfile)(fd, p[0], NULL, 3));
    errors(fd);
    bad_memory(p[1]);
    FILE *stream = fdopen(fd, "r+");
    T("fclose", fclose(stream));
    T("close after fclose", N(close)(fd));
    N(close)(p[0]);
    N(close)(p[1]);
}

static void unix_sockets(void)
{
    int s[2];
    char buffer[100];
    struct iovec one = {buffer, sizeof buffer};
    struct msghdr message;
    memset(&message, 0, sizeof message);
    message.msg_iov = &one;
    message.msg_iovlen = 1;
    T("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    T("send", N(send)(s[0], "hello", 5, 0));
    T("recv PEEK", N(recv)(s[1], buffer, 100, MSG_PEEK));
    T("recvmsg", N(recvmsg)(s[1], &message, 0));
    one.iov_len = 3;
    T("sendmsg", N(sendmsg)(s[1], &message, 0));
    T("recvfrom", N(recvfrom)(s[0], buffer, 100, 0, NULL, NULL));
    errors(s[0]);
    bad_memory(s[0]);
    T("shutdown", N(shutdown)(s[0], SHUT_WR));
    T("recv end", N(recv)(s[1], buffer, 100, 0));
    broken_pipes = 0;
    T("send broken", N(send)(s[0], "x", 1, MSG_NOSIGNAL));
    T("signals", broken_pipes);
    T("send broken", N(send)(s[0], "x", 1, 0));
    T("signals", broken_pipes);
    N(close)(s[0]);
    N(close)(s[1]);
}

static volatile sig_atomic_t handled;

static void handles(int number)
{
    handled = number;
}

static void handles_three(int number, siginfo_t *info, void *context)
{
    handled = info->si_signo == number && info->si_code == SI_TKILL && context ? 1000 + number : -1;
}

static sigjmp_buf out;

static void jumps(int number)
{
    siglongjmp(out, number);
}

static void say(int number)
{
    struct sigaction now;
    T("sigaction", sigaction(number, NULL, &now));
    T("is handles", now.sa_handler == handles);
    T("is handles_three", now.sa_sigaction == handles_three);
    T("is default", now.sa_handler == SIG_DFL);
    T("flags", now.sa_flags);
    T("mask", sigismember(&now.sa_mask, SIGHUP));
    T("raise", now.sa_handler == SIG_DFL ? 0 : raise(number));
    T("handled", handled);
    handled = 0;
}

/* Old calls are among them. */
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
static void signals(void)
{
    struct sigaction action, before;
    memset(&action, 0, sizeof action);
    action.sa_handler = handles;
    sigaddset(&action.sa_mask, SIGHUP);
    action.sa_flags = SA_RESTART;
    T("sigaction", sigaction(SIGUSR1, &action, &before));
    T("was default", before.sa_handler == SIG_DFL);
    say(SIGUSR1);
    action.sa_sigaction = handles_three;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    T("sigaction", sigaction(SIGUSR1, &action, &before));
    T("was handles", before.sa_handler == handles);
    T("flags", before.sa_flags);
    say(SIGUSR1);
    action.sa_handler = handles;
    action.sa_flags = SA_RESETHAND;
    T("sigaction", sigaction(SIGUSR1, &action, NULL));
    say(SIGUSR1);
    say(SIGUSR1);
    T("signal", signal(SIGUSR1, handles) == SIG_DFL);
    say(SIGUSR1);
    T("siginterrupt", siginterrupt(SIGUSR1, 1));
    say(SIGUSR1);
    T("signal", signal(SIGUSR1, SIG_IGN) == handles);
    T("signal", signal(SIGUSR1, SIG_DFL) == SIG_IGN);
    T("sysv_signal", sysv_signal(SIGUSR1, handles) == SIG_DFL);
    say(SIGUSR1);
    say(SIGUSR1);
    T("sigset", sigset(SIGUSR1, handles) == SIG_DFL);
    T("sigset", sigset(SIGUSR1, SIG_DFL) == handles);
    T("kill", sigaction(SIGKILL, &action, NULL));
    T("none", sigaction(0, &action, NULL));
    T("too high", sigaction(65, &action, NULL));
    T("signal none", signal(65, handles) == SIG_ERR);
    handle(SIGUSR1, jumps, 0);
    int jumped = sigsetjmp(out, 1);
    if (jumped == 0)
        raise(SIGUSR1);
    T("jumped", jumped);
    handle(SIGSEGV, jumps, SA_NODEFER);
    jumped = sigsetjmp(out, 1);
    if (jumped == 0)
        *(volatile char *)halves[0].end = 1;
    T("jumped", jumped);
    handle(SIGSEGV, SIG_DFL, 0);
    handle(SIGUSR1, SIG_DFL, 0);
}

static void *returns(void *argument)
{
    return argument;
}

static void waits(void)
{
    struct pollfd none = {-1, POLLIN, 0};
    struct timespec zero = {0, 0}, bad = {0, 2000000000}, soon;
    struct timeval now = {0, 0};
    struct epoll_event event;
    sigset_t set;
    sem_t semaphore;
    pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_t thread;
    void *value;
    int status, ep = epoll_create1(0);
    T("poll", N(poll)(&none, 1, 0));
    T("poll 5", N(poll)(&none, 1, 5));
    T("poll NULL", N(poll)(nothing, 1, 0));
    T("ppoll", N(ppoll)(&none, 1, &zero, NULL));
    T("ppoll bad", N(ppoll)(&none, 1, &bad, NULL));
    T("select", N(select)(0, NULL, NULL, NULL, &now));
    T("select -1", N(select)(-1, NULL, NULL, NULL, &now));
    T("pselect", N(pselect)(0, NULL, NULL, NULL, &zero, NULL));
    T("epoll_wait", N(epoll_wait)(ep, &event, 1, 0));
    T("epoll_wait 0", N(epoll_wait)(ep, &event, 0, 0));
    T("epoll_pwait", N(epoll_pwait)(ep, &event, 1, 0, NULL));
    T("epoll_pwait2", epoll_pwait2(ep, &event, 1, &zero, NULL));
    T("sleep 0", sleep(0));
    T("usleep", usleep(1));
    T("nanosleep", nanosleep(&zero, NULL));
    T("nanosleep bad", nanosleep(&bad, NULL));
    T("clock_nanosleep bad", clock_nanosleep(CLOCK_MONOTONIC, 0, &bad, NULL));
    T("clock_nanosleep 77", clock_nanosleep(77, 0, &zero, NULL));
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    T("sigtimedwait", sigtimedwait(&set, NULL, &zero));
    sem_init(&semaphore, 0, 1);
    T("sem_wait", sem_wait(&semaphore));
    clock_gettime(CLOCK_REALTIME, &soon);
    T("sem_timedwait", sem_timedwait(&semaphore, &soon));
    T("sem_clockwait", sem_clockwait(&semaphore, CLOCK_REALTIME, &soon));
    pthread_mutex_lock(&mutex);
    T("cond_timedwait", pthread_cond_timedwait(&cond, &mutex, &soon));
    T("cond_clockwait", pthread_cond_clockwait(&cond, &mutex, CLOCK_REALTIME, &soon));
    pthread_mutex_unlock(&mutex);
    T("pthread_create", pthread_create(&thread, NULL, returns, &status));
    T("pthread_join", pthread_join(thread, &value));
    T("value", value == &status);
    T("waitpid", waitpid(-1, &status, 0));
    T("wait4", wait4(-1, &status, WNOHANG, NULL));
    T("wait", wait(&status));
    T("waitid", waitid(P_ALL, 0, NULL, WEXITED));
    pid_t child = fork();
    if (child == 0)
        _exit(7);
    T("waitpid", waitpid(child, &status, 0) == child);
    T("status", status);
    N(close)(ep);
}

static int client_side(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(fd, (struct sockaddr *)&there, sizeof there) != 0) {
        perror("connect");
        exit(1);
    }
    /* High, so that the server's numbers do not depend on it. */
    int high = fcntl(fd, F_DUPFD, 300);
    close(fd);
    return high;
}

/* Reads exactly so much on the peer's side and prints it. */
static void peer_gets(int fd, size_t n)
{
    char buffer[1000];
    memset(buffer, 0, sizeof buffer);
    size_t got = 0;
    while (got < n) {
        ssize_t more = recv(fd, buffer + got, n - got, 0);
        if (more <= 0) {
            printf("%s: peer: %zd after %zu, %s\n", section, more, got, more < 0 ? strerror(errno) : "");
            return;
        }
        got += (size_t)more;
    }
    printf("%s: peer gets \"%s\"\n", section, buffer);
}

static void peer_sends(int fd, const char *text)
{
    if (send(fd, text, strlen(text), 0) < 0)
        perror("send");
    rest(30);
}

static void *sends_later(void *argument)
{
    rest(100);
    peer_sends(*(int *)argument, "LA");
    rest(100);
    peer_sends(*(int *)argument, "TER");
    return NULL;
}

#define BIG (6 << 20)
static char big[BIG];

static long total, wrong;

static void *swallows(void *argument)
{
    static char buffer[65536];
    total = wrong = 0;
    while (total < BIG) {
        ssize_t n = recv(*(int *)argument, buffer, sizeof buffer, 0);
        if (n <= 0)
            break;
        for (ssize_t i = 0; i < n; i++)
            wrong += buffer[i] != big[total + i];
        total += n;
    }
    return NULL;
}

static void has_swallowed(pthread_t thread)
{
    pthread_join(thread, NULL);
    printf("%s: peer gets %ld, %ld wrong\n", section, total, wrong);
}

static int accepted(int listener, int *peer)
{
    *peer = client_side();
    return N(accept)(listener, NULL, NULL);
}

static void tcp_accept(int listener)
{
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    int peer, fd;
    T("nonblock", fcntl(listener, F_SETFL, O_NONBLOCK));
    T("accept none", N(accept)(listener, NULL, NULL));
    peer = client_side();
    T("accept", fd = N(accept)(listener, (struct sockaddr *)&name, &length));
    T("length", length);
    T("family", name.ss_family);
    T("is blocking", fcntl(fd, F_GETFL) & O_NONBLOCK);
    N(close)(fd);
    close(peer);
    peer = client_side();
    length = 2;
    T("accept4 short", fd = N(accept4)(listener, (struct sockaddr *)&name, &length, SOCK_NONBLOCK | SOCK_CLOEXEC));
    T("length", length);
    T("is nonblocking", (fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    T("is cloexec", fcntl(fd, F_GETFD));
    N(close)(fd);
    close(peer);
    T("accept4 bad flags", N(accept4)(listener, NULL, NULL, 0x55));
    length = (socklen_t)-1;
    peer = client_side();
    T("accept bad length", fd = N(accept)(listener, (struct sockaddr *)&name, &length));
    T("accept NULL length", fd = N(accept)(listener, (struct sockaddr *)&name, nothing));
    close(peer);
    /* What the two failures took off the queue. */
    while ((fd = N(accept)(listener, NULL, NULL)) >= 0)
        N(close)(fd);
    peer = client_side();
    T("accept to bad memory", N(accept)(listener, (struct sockaddr *)halves[0].end, &length));
    close(peer);
    peer = client_side();
    T("accept of a bad length", N(accept)(listener, (struct sockaddr *)&name, (socklen_t *)halves[0].end));
    close(peer);
    while ((fd = N(accept)(listener, NULL, NULL)) >= 0)
        N(close)(fd);
    T("blocking", fcntl(listener, F_SETFL, 0));
    struct timeval patience = {0, 30000};
    setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    T("accept timeout", N(accept)(listener, NULL, NULL));
    patience.tv_usec = 0;
    setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    errors(listener);
}

static void tcp_input(int listener)
{
    int peer, fd = accepted(listener, &peer);
    char a[10], b[10];
    struct iovec two[2] = {{a, 2}, {b, 5}};
    struct msghdr message;
    struct mmsghdr many[2];
    struct sockaddr_storage name;
    socklen_t length = sizeof name;
    pthread_t thread;
    T("recv none", N(recv)(fd, a, 5, MSG_DONTWAIT));
    peer_sends(peer, "hello, world");
    T("peek", N(recv)(fd, a, 5, MSG_PEEK));
    T("read", N(read)(fd, a, 3));
    T("read bad", N(read)(fd, halves[0].end, 3));
    T("readv", N(readv)(fd, two, 2));
    T("recvfrom", N(recvfrom)(fd, a, 10, 0, (struct sockaddr *)&name, &length));
    T("length", length);
    errors(fd);
    peer_sends(peer, "again");
    memset(&message, 0, sizeof message);
    message.msg_iov = two;
    message.msg_iovlen = 2;
    T("recvmsg", N(recvmsg)(fd, &message, 0));
    peer_sends(peer, "abcd");
    memset(many, 0, sizeof many);
    many[0].msg_hdr.msg_iov = &two[0];
    many[0].msg_hdr.msg_iovlen = 1;
    many[1].msg_hdr.msg_iov = &two[1];
    many[1].msg_hdr.msg_iovlen = 1;
    T("recvmmsg", recvmmsg(fd, many, 2, 0, NULL));
    T("lengths", many[0].msg_len * 100 + many[1].msg_len);
    pthread_create(&thread, NULL, sends_later, &peer);
    T("blocking read", N(read)(fd, a, 10));
    T("blocking rest", N(recv)(fd, a, 3, MSG_WAITALL));
    pthread_join(thread, NULL);
    pthread_create(&thread, NULL, sends_later, &peer);
    T("whole", N(recv)(fd, a, 5, MSG_WAITALL));
    T("is", memcmp(a, "LATER", 5));
    pthread_join(thread, NULL);
    struct timeval patience = {0, 30000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    T("timeout", N(read)(fd, a, 10));
    patience.tv_usec = 0;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    handle(SIGALRM, on_signal, 0);
    ualarm(50000, 0);
    T("interrupted", N(read)(fd, a, 10));
    T("F_SETFL", fcntl(fd, F_SETFL, O_NONBLOCK));
    T("empty", N(read)(fd, a, 10));
    T("F_SETFL", fcntl(fd, F_SETFL, 0));
    peer_sends(peer, "last");
    shutdown(peer, SHUT_WR);
    T("truncate", N(recv)(fd, NULL, 2, MSG_TRUNC));
    T("read", N(read)(fd, a, 10));
    T("end", N(read)(fd, a, 10));
    T("end", N(recv)(fd, a, 10, MSG_DONTWAIT));
    N(close)(fd);
    close(peer);
}

static void tcp_output(int listener)
{
    int peer, fd = accepted(listener, &peer);
    struct iovec three[3] = {{"one,", 4}, {NULL, 0}, {"two,", 4}};
    struct msghdr message;
    struct mmsghdr many[2];
    pthread_t thread;
    bad_memory(fd);
    T("write", N(write)(fd, "write,", 6));
    T("writev", N(writev)(fd, three, 3));
    T("send", N(send)(fd, "send,", 5, MSG_NOSIGNAL));
    T("sendto", N(sendto)(fd, "sendto,", 7, 0, NULL, 0));
    T("sendto name", N(sendto)(fd, "named,", 6, 0, (struct sockaddr *)&there, sizeof there));
    memset(&message, 0, sizeof message);
    message.msg_iov = three;
    message.msg_iovlen = 3;
    T("sendmsg", N(sendmsg)(fd, &message, 0));
    memset(many, 0, sizeof many);
    many[0].msg_hdr = message;
    many[1].msg_hdr = message;
    T("sendmmsg", sendmmsg(fd, many, 2, 0));
    T("lengths", many[0].msg_len * 100 + many[1].msg_len);
    peer_gets(peer, 6 + 8 + 5 + 7 + 6 + 8 + 16);

    FILE *file = tmpfile();
    fputs("0123456789", file);
    fflush(file);
    off_t offset = 2;
    T("sendfile offset", N(sendfile)(fd, fileno(file), &offset, 3));
    T("offset", offset);
    lseek(fileno(file), 5, SEEK_SET);
    T("sendfile", N(sendfile)(fd, fileno(file), NULL, 100));
    T("position", lseek(fileno(file), 0, SEEK_CUR));
    T("sendfile end", N(sendfile)(fd, fileno(file), NULL, 100));
    T("sendfile 0", N(sendfile)(fd, fileno(file), NULL, 0));
    T("sendfile bad", N(sendfile)(fd, fileno(file), (off_t *)halves[1].end, 1));
    offset = -1;
    T("sendfile before", N(sendfile)(fd, fileno(file), &offset, 1));
    peer_gets(peer, 8);
    fclose(file);

    pthread_create(&thread, NULL, swallows, &peer);
    T("blocking", N(write)(fd, big, BIG));
    has_swallowed(thread);
    struct iovec parts[3] = {{big, BIG / 3}, {big + BIG / 3, BIG / 3}, {big + 2 * (BIG / 3), BIG - 2 * (BIG / 3)}};
    pthread_create(&thread, NULL, swallows, &peer);
    T("blocking", N(writev)(fd, parts, 3));
    has_swallowed(thread);
    file = tmpfile();
    fwrite(big, 1, BIG, file);
    fflush(file);
    rewind(file);
    pthread_create(&thread, NULL, swallows, &peer);
    T("blocking", N(sendfile)(fd, fileno(file), NULL, BIG));
    has_swallowed(thread);
    fclose(file);

    /* Now nobody reads. */
    struct timeval patience = {0, 100000};
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    /* The peer's window may grow a while after it was filled. */
    for (int quiet = 0; quiet < 5; quiet++) {
        while (N(send)(fd, big, BIG, MSG_DONTWAIT) > 0)
            quiet = 0;
        rest(100);
    }
    T("until timeout", N(write)(fd, big, BIG));
    patience.tv_usec = 0;
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    T("DONTWAIT", N(send)(fd, big, BIG, MSG_DONTWAIT));
    handle(SIGALRM, on_signal, 0);
    ualarm(100000, 0);
    T("interrupted", N(write)(fd, big, BIG));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    T("nonblocking", N(write)(fd, big, BIG));
    N(close)(fd);
    close(peer);
}

/* As T, for calls that end in their middle: all, a part, or none. */
#define PART(label, call, whole)                                                                                  \
    do {                                                                                                          \
        errno = UNTOUCHED;                                                                                        \
        long result_ = (long)(call);                                                                              \
        int errno_ = errno;                                                                                       \
        printf("%s: %s = %s errno %d\n", section, label,                                                          \
               result_ == (long)(whole) ? "all" : result_ > 0 ? "a part" : result_ == 0 ? "0" : "-1", errno_);    \
        fflush(stdout);                                                                                           \
    } while (0)

static void fill(int fd)
{
    /* The peer's window may grow a while after it was filled. */
    for (int quiet = 0; quiet < 5; quiet++) {
        while (N(send)(fd, big, BIG, MSG_DONTWAIT) > 0)
            quiet = 0;
        rest(100);
    }
}

static void empty(int peer)
{
    static char buffer[65536];
    for (int quiet = 0; quiet < 3; quiet++) {
        while (recv(peer, buffer, sizeof buffer, MSG_DONTWAIT) > 0)
            quiet = 0;
        rest(30);
    }
}

static void *empties_later(void *argument)
{
    static char buffer[65536];
    rest(400);
    while (recv(*(int *)argument, buffer, sizeof buffer, 0) > 0)
        ;
    return NULL;
}

static void alarm_in(int flags)
{
    handle(SIGALRM, on_signal, flags);
    ualarm(150000, 0);
}

/* Calls that wait, and signals: with and without SA_RESTART, with and without a timeout. */
static void tcp_signals(int listener)
{
    int peer, fd = accepted(listener, &peer);
    struct iovec one = {big, BIG};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1};
    struct timeval patience = {0, 400000}, none = {0, 0};
    pthread_t thread;
    char a[10];
    FILE *file = tmpfile();
    fwrite(big, 1, BIG, file);
    fflush(file);
    /* So that what is written never fits. */
    int small = 65536;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    setsockopt(peer, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    sigset_t alarms;
    sigemptyset(&alarms);
    sigaddset(&alarms, SIGALRM);

    for (int restart = 0; restart < 2; restart++) {
        int flags = restart ? SA_RESTART : 0;
        off_t offset = 0;
        printf("%s: %s SA_RESTART\n", section, restart ? "with" : "without");
        alarm_in(flags);
        PART("write", N(write)(fd, big, BIG), BIG);
        empty(peer);
        alarm_in(flags);
        PART("writev", N(writev)(fd, &one, 1), BIG);
        empty(peer);
        alarm_in(flags);
        PART("sendmsg", N(sendmsg)(fd, &message, 0), BIG);
        empty(peer);
        alarm_in(flags);
        PART("sendfile", N(sendfile)(fd, fileno(file), &offset, BIG), BIG);
        empty(peer);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        PART("write until timeout", N(write)(fd, big, BIG), BIG);
        fill(fd);
        PART("full until timeout", N(write)(fd, big, BIG), BIG);
        alarm_in(flags);
        PART("full, a timeout and a signal", N(write)(fd, big, BIG), BIG);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none);
        if (!restart) {
            alarm_in(flags);
            PART("full", N(write)(fd, big, BIG), BIG);
            offset = 0;
            alarm_in(flags);
            PART("full sendfile", N(sendfile)(fd, fileno(file), &offset, BIG), BIG);
        }
        empty(peer);

        peer_sends(peer, "abc");
        alarm_in(flags);
        T("recv WAITALL", N(recv)(fd, a, 5, MSG_WAITALL));
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        peer_sends(peer, "abc");
        T("recv WAITALL until timeout", N(recv)(fd, a, 5, MSG_WAITALL));
        alarm_in(flags);
        T("recv, a timeout and a signal", N(recv)(fd, a, 5, 0));
        alarm_in(flags);
        T("recv WAITALL, a timeout and a signal", N(recv)(fd, a, 5, MSG_WAITALL));
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
        if (!restart) {
            alarm_in(flags);
            T("accept", N(accept)(listener, NULL, NULL));
        }
        setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        alarm_in(flags);
        T("accept, a timeout and a signal", N(accept)(listener, NULL, NULL));
        setsockopt(listener, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
    }

    /* That another signal's handler has no SA_RESTART does not matter. Whom a signal interrupts is this thread. */
    handle(SIGUSR1, on_signal, 0);
    fill(fd);
    pthread_sigmask(SIG_BLOCK, &alarms, NULL);
    pthread_create(&thread, NULL, empties_later, &peer);
    pthread_sigmask(SIG_UNBLOCK, &alarms, NULL);
    alarm_in(SA_RESTART);
    PART("full, goes on", N(write)(fd, big, BIG), BIG);
    pthread_sigmask(SIG_BLOCK, &alarms, NULL);
    N(shutdown)(fd, SHUT_WR);
    pthread_join(thread, NULL);
    handle(SIGUSR1, SIG_DFL, 0);
    pthread_create(&thread, NULL, sends_later, &peer);
    pthread_sigmask(SIG_UNBLOCK, &alarms, NULL);
    handle(SIGALRM, on_signal, SA_RESTART);
    ualarm(50000, 0);
    T("read, goes on", N(read)(fd, a, 2));
    T("rest", N(recv)(fd, a, 3, MSG_WAITALL));
    pthread_join(thread, NULL);
    fclose(file);
    N(close)(fd);
    close(peer);

    /* What follows a message that went in part would follow a gap. */
    fd = accepted(listener, &peer);
    struct mmsghdr many[2] = {{.msg_hdr = message}, {.msg_hdr = message}};
    T("sendmmsg", sendmmsg(fd, many, 2, MSG_DONTWAIT));
    T("a part", many[0].msg_len > 0 && many[0].msg_len < BIG);
    T("the second", many[1].msg_len);
    N(close)(fd);
    close(peer);
}

static void *fills_pipe(void *argument)
{
    for (long at = 0; at < BIG;) {
        ssize_t n = write(*(int *)argument, big + at, (size_t)(BIG - at < 100000 ? BIG - at : 100000));
        if (n <= 0)
            break;
        at += n;
    }
    close(*(int *)argument);
    return NULL;
}

static void tcp_splices(int listener)
{
    int peer, fd = accepted(listener, &peer), ends[2], others[2];
    char a[100];
    loff_t offset = 0;
    pthread_t thread, filler;
    T("pipe", pipe(ends));
    FILE *file = tmpfile();
    fputs("0123456789", file);
    fflush(file);
    peer_sends(peer, "hello, world");
    T("socket to pipe", splice(fd, NULL, ends[1], NULL, 5, 0));
    T("socket to pipe", splice(fd, NULL, ends[1], NULL, 100, SPLICE_F_MOVE | SPLICE_F_NONBLOCK));
    T("is", read(ends[0], a, 100) == 12 && memcmp(a, "hello, world", 12) == 0);
    T("nothing", splice(fd, NULL, ends[1], NULL, 0, 0));
    T("socket at an offset", splice(fd, &offset, ends[1], NULL, 5, SPLICE_F_NONBLOCK));
    T("to an offset", splice(fd, NULL, ends[1], &offset, 5, SPLICE_F_NONBLOCK));
    struct timeval patience = {0, 30000}, none = {0, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    T("until timeout", splice(fd, NULL, ends[1], NULL, 5, 0));
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
    handle(SIGALRM, on_signal, 0);
    ualarm(50000, 0);
    T("interrupted", splice(fd, NULL, ends[1], NULL, 5, 0));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    T("empty", splice(fd, NULL, ends[1], NULL, 5, 0));
    fcntl(fd, F_SETFL, 0);
    pthread_create(&thread, NULL, sends_later, &peer);
    T("waits", splice(fd, NULL, ends[1], NULL, 100, 0));
    pthread_join(thread, NULL);
    T("read", N(read)(fd, a, 100));
    T("is", read(ends[0], a, 100));
    T("socket to file", splice(fd, NULL, fileno(file), NULL, 5, SPLICE_F_NONBLOCK));
    T("socket to itself", splice(fd, NULL, fd, NULL, 5, SPLICE_F_NONBLOCK));
    T("file to socket", splice(fileno(file), &offset, fd, NULL, 5, 0));
    T("empty pipe", splice(ends[0], NULL, fd, NULL, 5, SPLICE_F_NONBLOCK));
    T("write", write(ends[1], "through a pipe", 14));
    T("pipe at an offset", splice(ends[0], &offset, fd, NULL, 5, 0));
    T("pipe to an offset", splice(ends[0], NULL, fd, &offset, 5, 0));
    T("pipe to socket", splice(ends[0], NULL, fd, NULL, 5, 0));
    T("pipe to socket", splice(ends[0], NULL, fd, NULL, 100, SPLICE_F_MORE));
    T("send", N(send)(fd, ".", 1, 0));
    peer_gets(peer, 15);
    T("file to pipe", splice(fileno(file), &offset, ends[1], NULL, 5, 0));
    T("tee", pipe(others) == 0 && tee(ends[0], others[1], 3, 0) == 3);
    struct iovec part = {big, 100};
    T("vmsplice", vmsplice(others[1], &part, 1, 0));
    T("pipe to socket", splice(others[0], NULL, fd, NULL, 3, 0));
    peer_gets(peer, 3);
    close(others[0]);
    close(others[1]);
    close(ends[1]);
    T("rest of it", splice(ends[0], NULL, fd, NULL, 100, 0));
    T("its end", splice(ends[0], NULL, fd, NULL, 100, 0));
    peer_gets(peer, 5);
    close(ends[0]);

    /* Much, to a peer that is slow, without waiting in the call. */
    T("pipe", pipe(ends));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    pthread_create(&thread, NULL, swallows, &peer);
    pthread_create(&filler, NULL, fills_pipe, &ends[1]);
    long sent = 0;
    for (;;) {
        ssize_t n = splice(ends[0], NULL, fd, NULL, 1 << 20, 0);
        struct pollfd room = {fd, POLLOUT, 0};
        if (n > 0)
            sent += n;
        else if (n == 0 || errno != EAGAIN)
            break;
        else
            poll(&room, 1, -1);
    }
    T("sent", sent);
    pthread_join(filler, NULL);
    has_swallowed(thread);
    close(ends[0]);

    /* Nobody reads. */
    fcntl(fd, F_SETFL, 0);
    T("pipe", pipe(ends));
    T("write", write(ends[1], big, 1000));
    fill(fd);
    alarm_in(0);
    T("full", splice(ends[0], NULL, fd, NULL, 1000, 0));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    T("full", splice(ends[0], NULL, fd, NULL, 1000, 0));
    T("it is still there", read(ends[0], a, 100));
    shutdown(fd, SHUT_WR);
    broken_pipes = 0;
    T("ended", splice(ends[0], NULL, fd, NULL, 1000, 0));
    T("signals", broken_pipes);
    close(ends[0]);
    close(ends[1]);
    fclose(file);
    N(close)(fd);
    close(peer);
}

static void tcp_ends(int listener)
{
    int peer, fd = accepted(listener, &peer);
    char byte;
    broken_pipes = 0;
    T("shutdown", N(shutdown)(fd, SHUT_WR));
    peer_gets(peer, 1);
    T("write", N(write)(fd, "x", 1));
    T("signals", broken_pipes);
    T("send", N(send)(fd, "x", 1, MSG_NOSIGNAL));
    T("signals", broken_pipes);
    T("shutdown", N(shutdown)(fd, SHUT_RDWR));
    T("read", N(read)(fd, &byte, 1));
    T("close", N(close)(fd));
    T("close", N(close)(fd));
    T("read", N(read)(fd, &byte, 1));
    close(peer);

    fd = accepted(listener, &peer);
    struct linger reset = {1, 0};
    setsockopt(peer, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(peer);
    rest(30);
    T("reset read", N(read)(fd, &byte, 1));
    T("reset read", N(read)(fd, &byte, 1));
    broken_pipes = 0;
    T("reset write", N(write)(fd, &byte, 1));
    T("signals", broken_pipes);
    T("close", N(close)(fd));

    fd = accepted(listener, &peer);
    FILE *stream = fdopen(fd, "w");
    fputs("stdio", stream);
    T("fclose", fclose(stream));
    peer_gets(peer, 6);
    T("write", N(write)(fd, "x", 1));
    close(peer);

    fd = accepted(listener, &peer);
    T("syscall close", syscall(SYS_close, fd));
    peer_gets(peer, 1);
    int p[2];
    if (pipe(p) != 0)
        abort();
    T("number used again", N(write)(p[1], "x", 1));
    T("number used again", N(read)(p[0], &byte, 1));
    N(close)(p[0]);
    N(close)(p[1]);
    close(peer);
}

static void tcp_streams(int listener)
{
    char line[100], byte;
    int peer, fd = accepted(listener, &peer);
    T("fdopen with a bad mode", fdopen(fd, "q") == NULL);
    FILE *stream = fdopen(fd, "r+");
    T("fileno", fileno(stream) == fd);
    T("fputs", fputs("hello\n", stream));
    T("fflush", fflush(stream));
    peer_gets(peer, 6);
    peer_sends(peer, "one\ntwo\nthree");
    T("fgets", fgets(line, sizeof line, stream) == line);
    T("line", strcmp(line, "one\n"));
    T("fgets", fgets(line, sizeof line, stream) == line);
    T("line", strcmp(line, "two\n"));
    T("ftell", ftell(stream));
    T("fseek", fseek(stream, 0, SEEK_SET));
    T("rest", fread(line, 1, 5, stream));
    T("fprintf", fprintf(stream, "%s %d\n", "formatted", 7));
    T("fflush", fflush(stream));
    peer_gets(peer, 12);
    T("setvbuf", setvbuf(stream, NULL, _IOLBF, 0));
    T("fputs", fputs("line buffered\n", stream));
    peer_gets(peer, 14);
    T("fwrite", fwrite(big, 1, 100, stream));
    T("nonblock", fcntl(fd, F_SETFL, O_NONBLOCK));
    T("fflush", fflush(stream));
    T("fgetc", fgetc(stream));
    T("ferror", ferror(stream) != 0);
    clearerr(stream);
    shutdown(peer, SHUT_WR);
    rest(30);
    T("fgetc", fgetc(stream));
    T("feof", feof(stream) != 0);
    T("fputs", fputs("last", stream));
    T("fclose", fclose(stream));
    T("read", N(read)(fd, &byte, 1));
    close(peer);

    fd = accepted(listener, &peer);
    stream = fdopen(fd, "w");
    FILE *second = fdopen(N(dup)(fd), "r");
    T("fputs", fputs("through a copy", stream));
    T("fclose", fclose(stream));
    peer_gets(peer, 14);
    peer_sends(peer, "x");
    T("fgetc", fgetc(second));
    T("fclose", fclose(second));
    peer_gets(peer, 1);
    close(peer);

    fd = accepted(listener, &peer);
    stream = fdopen(fd, "w");
    fputs("left in the buffer at the end", stream);
    pid_t child = fork();
    if (child == 0)
        exit(0);
    T("waitpid", waitpid(child, NULL, 0) == child);
    peer_gets(peer, 29);
    T("fclose", fclose(stream));
    peer_gets(peer, 29);
    close(peer);
}

/* What calls become in programs that are built with _FORTIFY_SOURCE, and with 64-bit offsets. */
ssize_t __read_chk(int fd, void *buffer, size_t n, size_t room);
ssize_t __recv_chk(int fd, void *buffer, size_t n, size_t room, int flags);
ssize_t __recvfrom_chk(int fd, void *__restrict buffer, size_t n, size_t room, int flags, struct sockaddr *__restrict address,
                       socklen_t *__restrict length);
int __poll_chk(struct pollfd *fds, nfds_t n, int timeout, size_t room);
int __ppoll_chk(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask, size_t room);
int fcntl64(int fd, int command, ...);

static void tcp_names(int listener)
{
    int peer, fd = accepted(listener, &peer), file = fileno(tmpfile());
    char text[16] = "";
    struct sockaddr_in from;
    socklen_t length = sizeof from;
    struct pollfd entry = {fd, POLLIN, 0};
    struct timespec second = milliseconds(1000);
    struct iovec part = {text, 2};
    off64_t at = 0;

    T("__poll_chk none", __poll_chk(&entry, 1, 0, sizeof entry));
    peer_sends(peer, "abcdefgh");
    T("__poll_chk", __poll_chk(&entry, 1, 1000, sizeof entry));
    T("__ppoll_chk", __ppoll_chk(&entry, 1, &second, NULL, sizeof entry));
    T("__read_chk", __read_chk(fd, text, 2, sizeof text));
    T("__recv_chk peek", __recv_chk(fd, text, 2, sizeof text, MSG_PEEK));
    T("__recv_chk", __recv_chk(fd, text, 2, sizeof text, 0));
    T("__recvfrom_chk", __recvfrom_chk(fd, text, 2, sizeof text, 0, (struct sockaddr *)&from, &length));
    T("preadv2", preadv2(fd, &part, 1, -1, 0));
    printf("%s: read \"%s\"\n", section, text);
    T("none left", __recv_chk(fd, text, 2, sizeof text, MSG_DONTWAIT));
    T("write file", write(file, "from a file", 11));
    T("sendfile64", sendfile64(fd, file, &at, 11));
    T("offset", at);
    T("pwritev2", pwritev2(fd, &part, 1, -1, 0));
    peer_gets(peer, 13);
    T("fcntl64", fcntl64(fd, F_SETFL, O_NONBLOCK));
    T("is nonblocking", fcntl64(fd, F_GETFL) == (O_RDWR | O_NONBLOCK));
    T("__read_chk none", __read_chk(fd, text, 2, sizeof text));
    T("fcntl64 copy", fcntl64(fd, F_DUPFD, 205));
    T("write to it", N(write)(205, "copy", 4));
    peer_gets(peer, 4);
    N(close)(205);
    N(close)(fd);
    close(file);
    close(peer);
}

/* Waits until a signal was handled. */
static void was_handled(const char *label)
{
    for (int i = 0; i < 200 && handled == 0; i++)
        rest(5);
    T(label, handled);
    handled = 0;
}

/* Signals that tell of input. */
static void tcp_async(int listener)
{
    int peer, fd = accepted(listener, &peer), ep = epoll_create1(0), outer = epoll_create1(0);
    struct epoll_event event = {EPOLLIN, {.fd = fd}};
    char byte;

    handle(SIGIO, handles, SA_RESTART);
    handle(SIGUSR1, handles, SA_RESTART);
    T("F_SETOWN", fcntl(fd, F_SETOWN, getpid()));
    T("F_GETOWN", fcntl(fd, F_GETOWN) == getpid());
    T("O_ASYNC", fcntl(fd, F_SETFL, O_ASYNC | O_NONBLOCK));
    T("is O_ASYNC", fcntl(fd, F_GETFL) == (O_RDWR | O_ASYNC | O_NONBLOCK));
    handled = 0;
    peer_sends(peer, "x");
    was_handled("SIGIO");
    T("read", N(read)(fd, &byte, 1));
    T("F_SETSIG", fcntl(fd, F_SETSIG, SIGUSR1));
    T("F_GETSIG", fcntl(fd, F_GETSIG));
    peer_sends(peer, "y");
    was_handled("SIGUSR1");
    T("read", N(read)(fd, &byte, 1));
    T("no O_ASYNC", fcntl(fd, F_SETFL, 0));
    peer_sends(peer, "z");
    T("no signal", handled);

    /* An epoll in an epoll. */
    T("epoll_ctl", epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event));
    event.data.fd = ep;
    T("epoll_ctl outer", epoll_ctl(outer, EPOLL_CTL_ADD, ep, &event));
    T("epoll_wait outer", N(epoll_wait)(outer, &event, 1, 1000));
    T("is", event.data.fd == ep);
    T("epoll_wait", N(epoll_wait)(ep, &event, 1, 1000));
    T("is", event.data.fd == fd);
    T("read", N(read)(fd, &byte, 1));
    T("epoll_wait outer none", N(epoll_wait)(outer, &event, 1, 0));
    handle(SIGIO, SIG_DFL, 0);
    handle(SIGUSR1, SIG_DFL, 0);
    N(close)(outer);
    N(close)(ep);
    N(close)(fd);
    close(peer);
}

static void tcp_copies(int listener)
{
    int copy, peer, fd = accepted(listener, &peer);
    T("dup", copy = N(dup)(fd));
    T("dup2", N(dup2)(fd, 200));
    T("dup2 same", N(dup2)(fd, fd));
    T("dup3", N(dup3)(fd, 201, 0));
    T("F_DUPFD", fcntl(fd, F_DUPFD, 202));
    T("close", N(close)(fd));
    T("write", N(write)(200, "200,", 4));
    T("close", N(close)(200));
    T("write", N(write)(201, "201,", 4));
    T("dup2 over it", N(dup2)(1, 201));
    T("write", N(write)(202, "202,", 4));
    peer_gets(peer, 12);
    T("close_range", close_range(200, 210, 0));
    T("write", N(write)(202, "202,", 4));
    T("write", N(write)(copy, "1", 1));
    peer_gets(peer, 1);
    T("close", N(close)(copy));
    peer_gets(peer, 1);
    close(peer);
}

static void tcp_children(int listener)
{
    int peer, fd = accepted(listener, &peer), status;
    char byte;
    pid_t child = fork();
    if (child == 0) {
        status = (int)N(write)(fd, "child,", 6);
        N(close)(fd);
        _exit(status);
    }
    T("waitpid", waitpid(child, &status, 0) == child);
    T("status", status);
    T("write", N(write)(fd, "parent,", 7));
    peer_gets(peer, 13);
    child = vfork();
    if (child == 0) {
        N(close)(fd);
        _exit(0);
    }
    waitpid(child, &status, 0);
    T("write", N(write)(fd, "after vfork,", 12));
    peer_gets(peer, 12);
    child = fork();
    if (child == 0) {
        /* The last one to hold it. */
        rest(100);
        status = (int)N(write)(fd, "orphan,", 7);
        _exit(status);
    }
    N(close)(fd);
    peer_gets(peer, 7);
    waitpid(child, &status, 0);
    T("status", status);
    peer_gets(peer, 1);
    close(peer);

    fd = accepted(listener, &peer);
    child = fork();
    if (child == 0) {
        peer_sends(peer, "x");
        status = (int)N(read)(fd, &byte, 1);
        exit(status);
    }
    waitpid(child, &status, 0);
    T("status", status);
    extern char **environ;
    char *arguments[] = {"/bin/true", NULL};
    T("posix_spawn", posix_spawn(&child, "/bin/true", NULL, NULL, arguments, environ));
    waitpid(child, &status, 0);
    T("status", status);
    T("system", system("exit 3"));
    N(close)(fd);
    close(peer);
}

static void *blocks_in_read(void *argument)
{
    char byte;
    N(read)(*(int *)argument, &byte, 1);
    return NULL;
}

static void *blocks_in_write(void *argument)
{
    for (;;)
        N(write)(*(int *)argument, big, BIG);
    return NULL;
}

static void tcp_cancel(int listener)
{
    int peer, fd = accepted(listener, &peer);
    char byte;
    void *value;
    pthread_t thread;
    pthread_create(&thread, NULL, blocks_in_read, &fd);
    rest(50);
    pthread_cancel(thread);
    pthread_join(thread, &value);
    T("cancelled", value == PTHREAD_CANCELED);
    peer_sends(peer, "x");
    T("read", N(read)(fd, &byte, 1));
    pthread_create(&thread, NULL, blocks_in_write, &fd);
    rest(300);
    pthread_cancel(thread);
    pthread_join(thread, &value);
    T("cancelled", value == PTHREAD_CANCELED);
    /* How much fits now is the kernel's affair. */
    N(send)(fd, big, BIG, MSG_DONTWAIT);
    N(close)(fd);
    close(peer);
}

static void tcp_events(int listener)
{
    int peer, fd, ep = epoll_create1(0);
    char byte;
    struct epoll_event event = {EPOLLIN, {.fd = listener}};
    struct pollfd entry = {listener, POLLIN, 0};
    T("epoll_ctl", epoll_ctl(ep, EPOLL_CTL_ADD, listener, &event));
    T("poll none", N(poll)(&entry, 1, 0));
    peer = client_side();
    T("epoll_wait", N(epoll_wait)(ep, &event, 1, 1000));
    T("poll", N(poll)(&entry, 1, 1000));
    fd = N(accept)(listener, NULL, NULL);
    T("none left", N(poll)(&entry, 1, 0));
    event.data.fd = fd;
    T("epoll_ctl", epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event));
    peer_sends(peer, "x");
    T("epoll_wait", N(epoll_wait)(ep, &event, 1, 1000));
    T("is", event.data.fd == fd);
    T("read", N(read)(fd, &byte, 1));
    T("write", N(write)(fd, &byte, 1));
    T("epoll_wait", N(epoll_wait)(ep, &event, 1, 0));
    peer_gets(peer, 1);
    N(close)(fd);
    N(close)(ep);
    close(peer);
}

int main(int count, char **arguments)
{
    int one = 1, listener;
    if (count != 3) {
        fprintf(stderr, "usage: conformance ADDRESS PORT\n");
        return 2;
    }
    handle(SIGPIPE, on_broken_pipe, SA_RESTART);
    there.sin_family = AF_INET;
    there.sin_port = htons((unsigned short)atoi(arguments[2]));
    inet_pton(AF_INET, arguments[1], &there.sin_addr);
    for (int i = 0; i < BIG; i++)
        big[i] = (char)(i * 7 + i / 4096);

    make_halves();
    section = "bad descriptors";
    bad_descriptors();
    section = "pipes";
    pipes();
    section = "files";
    files();
    section = "unix";
    unix_sockets();
    section = "waits";
    waits();
    section = "signals";
    signals();

    section = "tcp";
    T("socket", listener = N(socket)(AF_INET, SOCK_STREAM, 0));
    T("bad socket", N(socket)(999, SOCK_STREAM, 0));
    T("reuse", N(setsockopt)(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one));
    T("bind short", N(bind)(listener, (struct sockaddr *)&there, 3));
    T("bind NULL", N(bind)(listener, nothing, sizeof there));
    T("bind", N(bind)(listener, (struct sockaddr *)&there, sizeof there));
    T("bind again", N(bind)(listener, (struct sockaddr *)&there, sizeof there));
    T("listen", N(listen)(listener, 100));
    section = "tcp accept";
    tcp_accept(listener);
    section = "tcp input";
    tcp_input(listener);
    section = "tcp output";
    tcp_output(listener);
    section = "tcp signals";
    signals();
    section = "tcp interrupted";
    tcp_signals(listener);
    section = "tcp splices";
    tcp_splices(listener);
    section = "tcp ends";
    tcp_ends(listener);
    section = "tcp streams";
    tcp_streams(listener);
    section = "tcp names";
    tcp_names(listener);
    section = "tcp async";
    tcp_async(listener);
    section = "tcp copies";
    tcp_copies(listener);
    section = "tcp children";
    tcp_children(listener);
    section = "tcp cancel";
    tcp_cancel(listener);
    section = "tcp events";
    tcp_events(listener);
    section = "end";
    T("close", N(close)(listener));
    return 0;
}
