/* process_server PORT WAY: answers each line with the same line. Its processes are made, and its descriptors are closed, in ways
 * that servers have.
 *
 * A process for each connection:
 *   dfork     the one that accepts is forked twice, and the one between does nothing
 *   clone     made by clone as a system call, as vsftpd does
 *   clonefn   made by the C library's clone
 *   newnet    goes into a network namespace of its own before it reads
 *   clonenet  is made in one
 *   strict    locks itself in by seccomp, and may do nothing but read, write and end
 *   filter    the same by a filter that kills for everything else
 *   late      the same, when it has answered a line
 *   open      it installs a filter that forbids little
 *   exec      executes this program again without an environment, when it has answered a line
 *   stderr    has the connection as its standard input, output and error
 *
 * One process for all, which closes all descriptors that it does not know, again and again, and then has all numbers in use
 * for connections of its own, in which not a byte may turn up:
 *   range     by close_range, without the C library
 *   syscall   by close_range, by the C library's syscall
 *   each      one by one, without the C library, as /proc/self/fd names them
 *   over      by dup2 over them, without the C library
 *   libc      by the C library: close one by one, close_range, closefrom and dup2 in turn
 */
#ifndef _GNU_SOURCE /* linked: tcpr_compat.h comes first */
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *way;

static int is(const char *name)
{
    return strcmp(way, name) == 0;
}

static void die(const char *what)
{
    dprintf(2, "process_server: %s: %s\n", what, strerror(errno));
    _exit(1);
}

/* A system call that nobody sees. */
static long raw(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

static void lock_in(void)
{
    if (is("strict")) {
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0)
            die("strict");
        return;
    }
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_filter little[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_STMT(BPF_ST, 3),
        BPF_STMT(BPF_ALU | BPF_AND | BPF_K, 0xfff),
        BPF_STMT(BPF_MISC | BPF_TAX, 0),
        BPF_STMT(BPF_LD | BPF_MEM, 3),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_X, 0, 0, 1),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ptrace, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    if (is("open"))
        program = (struct sock_fprog){sizeof little / sizeof little[0], little};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        die("no_new_privs");
    long done = is("late") ? syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program)
                           : prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
    if (done != 0)
        die("seccomp");
}

static void echo(int in, int out)
{
    static char bytes[100000];
    size_t length = 0;
    ssize_t n;
    if (is("newnet") && unshare(CLONE_NEWNET) != 0)
        die("unshare");
    if (is("strict") || is("filter") || is("open"))
        lock_in();
    for (int lines = 0; (n = read(in, bytes + length, sizeof bytes - length)) > 0;) {
        length += (size_t)n;
        if (bytes[length - 1] != '\n')
            continue;
        for (size_t at = 0; at < length; at += (size_t)n)
            if ((n = write(out, bytes + at, length - at)) < 0)
                _exit(1);
        length = 0;
        if (is("late") && ++lines == 1)
            lock_in();
        if (is("exec")) {
            char *arguments[] = {"process_server", "0", "again", NULL}, *nothing[] = {NULL};
            dup2(in, 0);
            dup2(in, 1);
            for (int fd = 3; fd < 1000; fd++)
                close(fd);
            execve("/proc/self/exe", arguments, nothing);
            die("exec");
        }
    }
    if (is("strict"))
        raw(SYS_exit, 0, 0, 0);
    _exit(0);
}

static int in_clone(void *fd)
{
    echo(*(int *)fd, *(int *)fd);
    return 0;
}

static pid_t process(int fd)
{
    if (is("clone") || is("clonenet"))
        return (pid_t)syscall(SYS_clone, SIGCHLD | (is("clone") ? CLONE_NEWIPC : CLONE_NEWNET), 0, 0, 0, 0);
    if (is("clonefn")) {
        static char stack[1 << 20];
        return clone(in_clone, stack + sizeof stack, SIGCHLD, &fd);
    }
    return fork();
}

static void serve_by_processes(int listener)
{
    signal(SIGCHLD, SIG_IGN);
    if (is("dfork") && fork() == 0) {
        if (fork() != 0) {
            wait(NULL);
            _exit(0);
        }
    } else if (is("dfork")) {
        for (;;)
            pause();
    }
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        pid_t child = process(fd);
        if (child < 0)
            die("child");
        if (child == 0) {
            if (!is("stderr"))
                echo(fd, fd);
            dup2(fd, 0);
            dup2(fd, 1);
            dup2(fd, 2);
            close(fd);
            echo(0, 1);
        }
        close(fd);
    }
}

#define MOST 128

static struct pollfd fds[MOST];
static int clients, ours[MOST];

static int is_known(int fd)
{
    for (int i = 0; i < clients; i++)
        if (fds[i].fd == fd)
            return 1;
    return fd < 3 || (fd < MOST && ours[fd]);
}

static void close_unknown(int fd, int how)
{
    if (is_known(fd))
        return;
    if (is("libc") && how == 0)
        close(fd);
    else if (is("libc") && how == 1)
        close_range((unsigned)fd, (unsigned)fd, 0);
    else if (is("range"))
        raw(SYS_close_range, fd, fd, 0);
    else if (is("syscall"))
        syscall(SYS_close_range, fd, fd, 0);
    else if (is("each"))
        raw(SYS_close, fd, 0, 0);
}

static void close_what_is_unknown(int round)
{
    int highest = 2;
    for (int i = 0; i < MOST; i++)
        if (is_known(i))
            highest = i;
    if (is("each")) {
        DIR *dir = opendir("/proc/self/fd");
        int open[MOST], n = 0;
        for (struct dirent *e; dir && (e = readdir(dir)) && n < MOST;)
            if (atoi(e->d_name) != dirfd(dir) && e->d_name[0] != '.')
                open[n++] = atoi(e->d_name);
        closedir(dir);
        while (n > 0)
            close_unknown(open[--n], 0);
        return;
    }
    if (is("libc") && round % 3 == 2) {
        closefrom(highest + 1);
        return;
    }
    for (int fd = 3; fd < MOST; fd++)
        close_unknown(fd, round % 3);
}

/* All numbers but some low ones become one end of a stream, whose other end is looked at. */
static int watched = -1, filler = -1;

static void fill(void)
{
    if (watched < 0) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
            die("socketpair");
        watched = pair[0];
        filler = pair[1];
        ours[watched] = ours[filler] = 1;
    }
    for (int fd = 40; fd < MOST; fd++) {
        if (is_known(fd))
            continue;
        if (is("libc"))
            dup2(filler, fd);
        else
            raw(SYS_dup2, filler, fd, 0);
    }
}

/* And again they are free. */
static void spill(void)
{
    char byte;
    if (watched >= 0 && recv(watched, &byte, 1, MSG_DONTWAIT) != -1)
        die("a byte that is nobody's");
    for (int fd = 40; fd < MOST && watched >= 0; fd++)
        if (!is_known(fd)) {
            if (is("libc"))
                close(fd);
            else
                raw(SYS_close, fd, 0, 0);
        }
}

static void serve_by_one(int listener)
{
    static char bytes[MOST][70000];
    static size_t length[MOST];
    ours[listener] = 1;
    fds[0] = (struct pollfd){.fd = listener, .events = POLLIN};
    clients = 1;
    for (int round = 0, lines = 0;;) {
        poll(fds, (nfds_t)clients, -1);
        if (fds[0].revents) {
            int fd = accept(listener, NULL, NULL);
            if (fd >= 0) {
                length[fd] = 0;
                fds[clients++] = (struct pollfd){.fd = fd, .events = POLLIN};
            }
        }
        for (int i = 1; i < clients; i++) {
            if (!fds[i].revents)
                continue;
            int fd = fds[i].fd;
            ssize_t n = read(fd, bytes[fd] + length[fd], sizeof bytes[fd] - length[fd]);
            if (n <= 0) {
                close(fd);
                fds[i--] = fds[--clients];
                continue;
            }
            length[fd] += (size_t)n;
            if (bytes[fd][length[fd] - 1] != '\n')
                continue;
            for (size_t at = 0; at < length[fd]; at += (size_t)n)
                if ((n = write(fd, bytes[fd] + at, length[fd] - at)) < 0)
                    break;
            length[fd] = 0;
            lines++;
        }
        /* Closed, free and in use for a while each. */
        if (lines >= 5) {
            lines = 0;
            switch (round++ % 3) {
            case 0:
                if (!is("over"))
                    close_what_is_unknown(round / 3);
                break;
            case 1:
                fill();
                break;
            default:
                spill();
            }
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: process_server PORT WAY\n");
        return 2;
    }
    way = argv[2];
    if (is("again"))
        echo(0, 1);
    int one = is("range") || is("syscall") || is("each") || is("over") || is("libc");
    struct rlimit most = {MOST, MOST};
    if (one)
        setrlimit(RLIMIT_NOFILE, &most);
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 64) < 0)
        die("listen");
    if (one)
        serve_by_one(listener);
    serve_by_processes(listener);
}
