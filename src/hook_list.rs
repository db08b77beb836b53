//! The one list of hooks. The exports (`hooks`) and the table of the C library's functions (`real`) are made from it.
//!
//! - `by_descriptor`: if the first argument is a descriptor with an entry in the table, the function of the same name in `ops`
//!   is called, else the C library
//! - `reads`: the same, and the turn is told what is read or accepted elsewhere, and that the thread waits for it. `polls` says
//!   when the call does not wait
//! - `waits`: ends the thread's turn, then calls the C library. `polls` says when the call has a timeout of zero
//! - `always`: the function of the same name in `ops` decides

/// Calls another macro with the list.
macro_rules! for_each_hook {
    ($callback:ident) => {
        $callback! {
            reads {
                fn read(fd: c_int, buffer: *mut c_void, n: size_t) -> ssize_t, polls false;
                fn __read_chk(fd: c_int, buffer: *mut c_void, n: size_t, size: size_t) -> ssize_t, polls false;
                fn readv(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t, polls false;
                fn recv(fd: c_int, buffer: *mut c_void, n: size_t, flags: c_int) -> ssize_t, polls flags & libc::MSG_DONTWAIT != 0;
                fn __recv_chk(fd: c_int, buffer: *mut c_void, n: size_t, size: size_t, flags: c_int) -> ssize_t, polls flags & libc::MSG_DONTWAIT != 0;
                fn recvfrom(fd: c_int, buffer: *mut c_void, n: size_t, flags: c_int, address: *mut sockaddr, length: *mut socklen_t) -> ssize_t, polls flags & libc::MSG_DONTWAIT != 0;
                fn __recvfrom_chk(fd: c_int, buffer: *mut c_void, n: size_t, size: size_t, flags: c_int, address: *mut sockaddr, length: *mut socklen_t) -> ssize_t, polls flags & libc::MSG_DONTWAIT != 0;
            }
            by_descriptor {
                // Output
                fn write(fd: c_int, buffer: *const c_void, n: size_t) -> ssize_t;
                fn writev(fd: c_int, iov: *const iovec, count: c_int) -> ssize_t;
                fn send(fd: c_int, buffer: *const c_void, n: size_t, flags: c_int) -> ssize_t;
                fn sendto(fd: c_int, buffer: *const c_void, n: size_t, flags: c_int, address: *const sockaddr, length: socklen_t) -> ssize_t;
                fn sendfile(fd: c_int, from: c_int, offset: *mut off_t, n: size_t) -> ssize_t;
                fn sendfile64(fd: c_int, from: c_int, offset: *mut off_t, n: size_t) -> ssize_t;

                // Sockets
                fn shutdown(fd: c_int, how: c_int) -> c_int;
                fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, length: *mut socklen_t) -> c_int;

                // Descriptors
                fn close(fd: c_int) -> c_int;
                fn dup(fd: c_int) -> c_int;
                fn fcntl(fd: c_int, command: c_int, argument: c_long) -> c_int;
                fn fcntl64(fd: c_int, command: c_int, argument: c_long) -> c_int;
                fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE;
            }
            waits {
                fn epoll_wait(ep: c_int, events: *mut epoll_event, max: c_int, timeout: c_int) -> c_int, polls timeout == 0;
                fn epoll_pwait(ep: c_int, events: *mut epoll_event, max: c_int, timeout: c_int, mask: *const sigset_t) -> c_int, polls timeout == 0;
                fn epoll_pwait2(ep: c_int, events: *mut epoll_event, max: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int, polls is_zero_unless_bad(timeout);
                fn poll(fds: *mut pollfd, n: nfds_t, timeout: c_int) -> c_int, polls timeout == 0;
                fn __poll_chk(fds: *mut pollfd, n: nfds_t, timeout: c_int, size: size_t) -> c_int, polls timeout == 0;
                fn ppoll(fds: *mut pollfd, n: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int, polls is_zero_timespec(timeout);
                fn __ppoll_chk(fds: *mut pollfd, n: nfds_t, timeout: *const timespec, mask: *const sigset_t, size: size_t) -> c_int, polls is_zero_timespec(timeout);
                fn select(n: c_int, r: *mut fd_set, w: *mut fd_set, x: *mut fd_set, timeout: *mut timeval) -> c_int, polls is_zero_timeval(timeout);
                fn pselect(n: c_int, r: *mut fd_set, w: *mut fd_set, x: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int, polls is_zero_timespec(timeout);
                fn sleep(seconds: c_uint) -> c_uint, polls false;
                fn usleep(microseconds: c_uint) -> c_int, polls false;
                fn nanosleep(time: *const timespec, left: *mut timespec) -> c_int, polls false;
                fn clock_nanosleep(clock: clockid_t, flags: c_int, time: *const timespec, left: *mut timespec) -> c_int, polls false;
                fn pause() -> c_int, polls false;
                fn sigsuspend(mask: *const sigset_t) -> c_int, polls false;
                fn sigwait(set: *const sigset_t, signal: *mut c_int) -> c_int, polls false;
                fn sigwaitinfo(set: *const sigset_t, info: *mut siginfo_t) -> c_int, polls false;
                fn sigtimedwait(set: *const sigset_t, info: *mut siginfo_t, timeout: *const timespec) -> c_int, polls is_zero_unless_bad(timeout);
                fn pthread_join(thread: pthread_t, result: *mut *mut c_void) -> c_int, polls false;
                fn pthread_timedjoin_np(thread: pthread_t, result: *mut *mut c_void, until: *const timespec) -> c_int, polls false;
                fn pthread_clockjoin_np(thread: pthread_t, result: *mut *mut c_void, clock: clockid_t, until: *const timespec) -> c_int, polls false;
                fn pthread_barrier_wait(barrier: *mut c_void) -> c_int, polls false;
                fn cnd_wait(cond: *mut c_void, mutex: *mut c_void) -> c_int, polls false;
                fn cnd_timedwait(cond: *mut c_void, mutex: *mut c_void, until: *const timespec) -> c_int, polls false;
                fn thrd_join(thread: pthread_t, result: *mut c_int) -> c_int, polls false;
                fn thrd_sleep(time: *const timespec, left: *mut timespec) -> c_int, polls false;
                fn mq_receive(queue: c_int, message: *mut c_char, n: size_t, priority: *mut c_uint) -> ssize_t, polls sys::is_nonblocking(queue);
                fn mq_timedreceive(queue: c_int, message: *mut c_char, n: size_t, priority: *mut c_uint, until: *const timespec) -> ssize_t, polls sys::is_nonblocking(queue);
                fn msgrcv(queue: c_int, message: *mut c_void, n: size_t, kind: c_long, flags: c_int) -> ssize_t, polls flags & libc::IPC_NOWAIT != 0;
                fn aio_suspend(list: *const c_void, n: c_int, timeout: *const timespec) -> c_int, polls is_zero_timespec(timeout);
                fn aio_suspend64(list: *const c_void, n: c_int, timeout: *const timespec) -> c_int, polls is_zero_timespec(timeout);
                fn sem_wait(semaphore: *mut sem_t) -> c_int, polls false;
                fn sem_timedwait(semaphore: *mut sem_t, until: *const timespec) -> c_int, polls false;
                fn sem_clockwait(semaphore: *mut sem_t, clock: clockid_t, until: *const timespec) -> c_int, polls false;
                fn wait(status: *mut c_int) -> pid_t, polls false;
                fn waitpid(pid: pid_t, status: *mut c_int, options: c_int) -> pid_t, polls options & libc::WNOHANG != 0;
                fn wait4(pid: pid_t, status: *mut c_int, options: c_int, usage: *mut rusage) -> pid_t, polls options & libc::WNOHANG != 0;
                fn wait3(status: *mut c_int, options: c_int, usage: *mut rusage) -> pid_t, polls options & libc::WNOHANG != 0;
                fn waitid(kind: idtype_t, id: id_t, info: *mut siginfo_t, options: c_int) -> c_int, polls options & libc::WNOHANG != 0;
            }
            always {
                fn recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t;
                fn recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int;
                fn sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t;
                fn sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int;
                fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
                fn bind(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int;
                fn listen(fd: c_int, backlog: c_int) -> c_int;
                fn accept(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int;
                fn accept4(fd: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int;
                fn connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int;
                fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, length: socklen_t) -> c_int;
                fn pthread_cond_wait(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t) -> c_int;
                fn pthread_cond_timedwait(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t, until: *const timespec) -> c_int;
                fn pthread_cond_clockwait(cond: *mut pthread_cond_t, mutex: *mut pthread_mutex_t, clock: clockid_t, until: *const timespec) -> c_int;
                fn semop(set: c_int, operations: *mut sembuf, n: size_t) -> c_int;
                fn semtimedop(set: c_int, operations: *mut sembuf, n: size_t, timeout: *const timespec) -> c_int;
                fn splice(from: c_int, from_at: *mut off64_t, to: c_int, to_at: *mut off64_t, n: size_t, flags: c_uint) -> ssize_t;
                fn dup2(from: c_int, to: c_int) -> c_int;
                fn dup3(from: c_int, to: c_int, flags: c_int) -> c_int;
                fn close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
                fn closefrom(first: c_int) -> ();
                fn sigaction(signal: c_int, new: *const SigAction, old: *mut SigAction) -> c_int;
                fn signal(signal: c_int, handler: sighandler_t) -> sighandler_t;
                fn bsd_signal(signal: c_int, handler: sighandler_t) -> sighandler_t;
                fn ssignal(signal: c_int, handler: sighandler_t) -> sighandler_t;
                fn sysv_signal(signal: c_int, handler: sighandler_t) -> sighandler_t;
                fn __sysv_signal(signal: c_int, handler: sighandler_t) -> sighandler_t;
                fn sigset(signal: c_int, handler: sighandler_t) -> sighandler_t;
                fn _Fork() -> pid_t;
                fn clone(f: *mut c_void, stack: *mut c_void, flags: c_int, argument: *mut c_void, parent: *mut c_void, tls: *mut c_void, child: *mut c_void) -> c_int;
                fn prctl(option: c_int, a: c_long, b: c_long, c: c_long, d: c_long) -> c_int;
                fn unshare(flags: c_int) -> c_int;
                fn setns(fd: c_int, kind: c_int) -> c_int;
                fn setuid(id: uid_t) -> c_int;
                fn setgid(id: gid_t) -> c_int;
                fn seteuid(id: uid_t) -> c_int;
                fn setegid(id: gid_t) -> c_int;
                fn setreuid(real: uid_t, effective: uid_t) -> c_int;
                fn setregid(real: gid_t, effective: gid_t) -> c_int;
                fn setresuid(real: uid_t, effective: uid_t, saved: uid_t) -> c_int;
                fn setresgid(real: gid_t, effective: gid_t, saved: gid_t) -> c_int;
                fn setgroups(n: size_t, groups: *const gid_t) -> c_int;
                fn initgroups(user: *const c_char, group: gid_t) -> c_int;
                fn fclose(file: *mut FILE) -> c_int;
                fn fileno(file: *mut FILE) -> c_int;
                fn fileno_unlocked(file: *mut FILE) -> c_int;
                fn syscall(number: c_long, a: c_long, b: c_long, c: c_long, d: c_long, e: c_long, f: c_long) -> c_long;
            }
        }
    };
}
pub(crate) use for_each_hook;
