/* tcpr: keeps TCP connections alive through the death of a process or machine. 64-bit Linux only.
 *
 * Words. A session is one protected TCP connection. The manager is the part of tcpr that stores sessions and takes
 * them over: a process (tcpr run) or a thread of this process (tcpr_init). The partner is the other machine of the
 * pair. Input is what the peer sends, output is what this program sends. A turn is what a thread does between two
 * waits: its output leaves, and its input is done, together.
 *
 * Calls that are named after one of the C library have its parameters, results and errno, on any descriptor, be it
 * protected or not; what a call adds to that is said at its declaration. The plain names (read, send, ...) act on
 * protected descriptors in the same way. The prefix matters only where sessions are made: tcpr_socket, tcpr_bind,
 * tcpr_connect.
 *
 * The other calls return 0 or a value, or -1 with errno set; errno is as before where a call succeeds. Beside the
 * errors at its declaration each of them may fail with ETIMEDOUT (the manager did not answer within 10 seconds),
 * EPROTO (the manager is of another version), EIO (a bug in libtcpr), or an error of the sockets to the manager
 * (EMFILE, ENOMEM, ...). tcpr_strerror says why in words.
 *
 * Threads: each call may be made by any thread at any time, but not in a signal handler (those of the C library's
 * names may be called there if the C library's may). Memory: no call keeps a pointer that it was given. Numbers
 * are in the byte order of the machine; addresses and ports within struct sockaddr are as everywhere in the C
 * library.
 *
 * Made by cbindgen from src/api; do not edit. */

#ifndef TCPR_H
#define TCPR_H


#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>


// The most bytes of a value that tcpr keeps for the program.
#define TCPR_MAX_VALUE 32768

// The most bytes of a key.
#define TCPR_MAX_KEY 255

// How a session came to this process.
enum tcpr_origin {
  // A peer connected, and this process accepted.
  TCPR_ORIGIN_NEW = 0,
  // The session was taken over from the partner, or from an earlier process on this machine.
  TCPR_ORIGIN_RECOVERED = 1,
  // This process connected.
  TCPR_ORIGIN_CONNECTED = 2,
  // Another process of this program held the session: the parent of this one, or one that passed the descriptor.
  TCPR_ORIGIN_INHERITED = 3,
};

// The role of this member (this machine within the pair).
enum tcpr_role {
  // The manager has not decided yet.
  TCPR_ROLE_STARTING = 0,
  // The partner serves; this member stands by.
  TCPR_ROLE_BACKUP = 1,
  // This member serves.
  TCPR_ROLE_MASTER = 2,
  // This member sends nothing, because it does not know whether the partner serves.
  TCPR_ROLE_FENCED = 3,
};

// What the manager of this member knows of a session. Offsets count the bytes of one direction since the connection was
// opened, from 0; a FIN counts nothing.
struct tcpr_session_info {
  // Number of the session, the same on both members. The number of a session that has ended may be used again.
  uint32_t session;
  // How the session came to this process.
  enum tcpr_origin origin;
  // Input before this offset is done: it will not be read again after a failover. At most in_stored.
  uint64_t in_done;
  // Input before this offset is in the log of this member. This field does not say whether the partner has it. (The peer
  // gets its acknowledgement when the partner has it, unless `durability` is "async".)
  uint64_t in_stored;
  // Output before this offset belongs to turns that have ended: it may leave as soon as the partner has it, too.
  uint64_t out_done;
  // Output before this offset is in the log of this member, with the end of its turn: the same number as out_done. This field
  // does not say whether the partner has it.
  uint64_t out_stored;
  // 1: what has become of this session could not be known after a crash, and a failover resets it. Else 0.
  int torn;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Joins the manager. Under `tcpr run` that is the one which started this program, and `config` is ignored. Otherwise a
// manager is started as a thread of this process, which needs its privileges at this moment (those that `tcpr run` needs).
//
// `config` is the path of the configuration file, NUL-terminated. NULL: the file that the environment variable TCPR_CONFIG
// names, else /etc/tcpr/tcpr.toml. Once the process has joined the call does nothing and returns 0. A program that makes its
// sockets by `tcpr_socket` need not call it: its first `tcpr_bind` to a port does the same.
//
// Waits up to 5 seconds for a manager that is starting.
//
// Returns 0, or -1 with errno ENOTCONN (no manager answers, or none could be started: the configuration is missing or wrong,
// a privilege is missing), EACCES (this program was not started by the manager that it found), ENOTSUP (libtcpr was loaded by
// dlopen, so that the program's calls do not reach it).
int tcpr_init(const char *config);

// The role of this member: a value of `tcpr_role`. Does not wait.
//
// Returns it, or -1 with errno ENOTCONN (this process has not joined a manager, or the manager is gone).
int tcpr_get_role(void);

// Waits until this member has a role (a value of `tcpr_role`), for at most `timeout_ms` milliseconds; 0 does not wait, and
// a negative number waits without end. The calling thread's turn ends. A signal does not end the wait.
//
// Returns 0 when the member has the role, or -1 with errno ETIMEDOUT (it does not have it in time), EINVAL (no such role),
// ENOTCONN (this process has not joined a manager, or the manager is gone).
int tcpr_wait_role(int role,
                   int timeout_ms);

// Has `callback` called with the role of this member (a value of `tcpr_role`) and `arg`: soon with the role of this moment, and then
// whenever the member has another one. -1 instead of a role: the manager is gone. A role that the member had for a moment only may
// be left out.
//
// The calls are made one after another, in the order of registration, by a thread that the library makes for them. All signals are
// blocked in it, and what a callback writes is a turn, which ends with the call. A callback may make any call, of this library, too.
// As long as it runs no other one is called, and the process does not hear of other roles. It should therefore do little: tell the
// event loop, say. It must not leave by longjmp or an exception. If it ends its thread (pthread_exit), the callbacks are called no
// more until one is registered again.
//
// Under `tcpr run` a program never sees its member become a backup if it was the master: it is killed and started again. With
// `on_demote = "disconnect"`, or without `tcpr run`, it goes on: its connections end (ECONNABORTED), and it is told. This also
// happens briefly when `tcpr run` hands its connections to the partner, before SIGTERM. A program that goes on must treat
// ECONNABORTED, and EROFS from the data calls, as loss of the role: a role that returns at once may not be reported.
//
// A program that forbids itself system calls (seccomp) registers before it does so.
//
// A pair of callback and argument can be registered once. `tcpr_off_role_change` removes it. The child of a fork has no callbacks.
//
// Returns 0, or -1 with errno EFAULT (`callback` is NULL), EEXIST (it is registered already, with this `arg`), EAGAIN (there is no thread
// for the calls), ENOTCONN (this process has not joined a manager, or the manager is gone), ENOTSUP (`standby = "hot"`).
int tcpr_on_role_change(void (*callback)(int role, void *arg),
                        void *arg);

// Removes what `tcpr_on_role_change` has registered with this `callback` and `arg`. When the call returns the callback does not run any
// more, and what it uses may be freed, except if the callback itself makes this call. The call waits for a callback that runs, so
// its caller must not hold a lock that the callback takes. The calling thread's turn ends.
//
// Returns 0, or -1 with errno EFAULT (`callback` is NULL), ENOENT (it is not registered with this `arg`).
int tcpr_off_role_change(void (*callback)(int role, void *arg),
                         void *arg);

// Asks the manager for what it knows of the session behind descriptor `fd`, and fills `info`, which is the caller's.
// `info->origin` tells a recovered session from a new one. What this process has done is told to the manager
// asynchronously: it may not be counted yet.
//
// Returns 0, or -1 with errno EINVAL (`fd` is no protected connection), EFAULT (`info` is NULL), ENOTCONN (the manager does
// not know the session any more, this process has not joined a manager, or the manager is gone). `info` is as before then.
int tcpr_session_info(int fd,
                      struct tcpr_session_info *info);

// Says that the next `n` bytes of input of the session behind descriptor `fd` are done: they will not be read again after a
// failover. The bytes of successive calls follow one another. The call takes effect when the calling thread's turn ends.
//
// From the first call on tcpr no longer infers for this session which input is done. A server that keeps parts of messages
// therefore calls with `n` = 0 as soon as it has accepted. Bytes that this program has not read yet do not count: the rest of a
// larger `n` is ignored.
//
// Returns 0, or -1 with errno EINVAL (`fd` is no protected connection), ENOTCONN (this process has not joined a manager, or
// the manager is gone).
int tcpr_consume(int fd,
                 size_t n);

// Ends the calling thread's turn, as a wait would: the output that it has written may leave, and the input that it has read
// is done, together. Does not wait for either.
//
// Returns 0, or -1 with errno ENOTCONN (this process has not joined a manager, or the manager is gone).
int tcpr_commit(void);

// Hands the service over to the partner, without loss of bytes or connections. The calling thread's turn ends.
//
// The manager decides what becomes of this process: under `tcpr run` it is ended, and started again on the backup that this
// member then is.
//
// Returns 0 once the manager has begun the switchover, which may still fail (the role then stays `TCPR_ROLE_MASTER`). Or -1
// with errno ENOTCONN: this process has not joined a manager, the manager is gone, or the members cannot switch over now
// (this member is not the master, there is no partner that is ready); `tcpr_strerror` says which.
int tcpr_switchover(void);

// Why the last `tcpr_` call of the calling thread failed, in English. The text is NUL-terminated, has at most 255 bytes, and
// belongs to the library: it is valid until the next call of this thread fails, or the thread ends. Empty as long as none
// has failed. Never NULL, and never fails. A call that is named after one of the C library leaves a text only where tcpr
// itself refused it.
const char *tcpr_strerror(void);

// The version of libtcpr, as "0.1.0". The text is NUL-terminated and lives as long as the library. Never NULL.
const char *tcpr_version(void);

// As `read`, on any descriptor.
ssize_t tcpr_read(int fd, void *buffer, size_t n);

// As `readv`, on any descriptor.
ssize_t tcpr_readv(int fd, const struct iovec *iov, int count);

// As `recv`, on any descriptor.
ssize_t tcpr_recv(int fd, void *buffer, size_t n, int flags);

// As `recvfrom`, on any descriptor.
ssize_t tcpr_recvfrom(int fd, void *buffer, size_t n, int flags, struct sockaddr *address, socklen_t *length);

// As `recvmsg`, on any descriptor.
ssize_t tcpr_recvmsg(int fd, struct msghdr *message, int flags);

// As `write`, on any descriptor.
ssize_t tcpr_write(int fd, const void *buffer, size_t n);

// As `writev`, on any descriptor.
ssize_t tcpr_writev(int fd, const struct iovec *iov, int count);

// As `send`, on any descriptor. MSG_OOB is refused with EOPNOTSUPP on protected connections; so it is by `tcpr_sendto` and
// `tcpr_sendmsg`.
ssize_t tcpr_send(int fd,
                  const void *buffer,
                  size_t n,
                  int flags);

// As `sendto`, on any descriptor.
ssize_t tcpr_sendto(int fd,
                    const void *buffer,
                    size_t n,
                    int flags,
                    const struct sockaddr *address,
                    socklen_t length);

// As `sendmsg`, on any descriptor.
ssize_t tcpr_sendmsg(int fd, const struct msghdr *message, int flags);

// As `sendfile`, on any descriptor.
ssize_t tcpr_sendfile(int fd, int from, off_t *offset, size_t n);

// As `close`, on any descriptor.
int tcpr_close(int fd);

// As `dup`, on any descriptor.
int tcpr_dup(int fd);

// As `dup2`, on any descriptor.
int tcpr_dup2(int from, int to);

// As `dup3`, on any descriptor.
int tcpr_dup3(int from, int to, int flags);

// As `socket`. A TCP socket that this call makes is protected if it listens on a protected port of the virtual IP, or
// connects to a protected destination.
int tcpr_socket(int domain,
                int kind,
                int protocol);

// As `bind`. The first bind to a port of a socket made by `tcpr_socket` joins the manager, as `tcpr_init(NULL)` does; if that
// fails, the bind fails with the errno of `tcpr_init`. The virtual IP may be bound on the backup, too.
int tcpr_bind(int fd,
              const struct sockaddr *address,
              socklen_t length);

// As `listen`, on any descriptor.
int tcpr_listen(int fd, int backlog);

// As `accept`. On a protected port, sessions that were taken over come first, as if their peers had just connected
// (`tcpr_session_info` tells them from new ones).
int tcpr_accept(int fd,
                struct sockaddr *address,
                socklen_t *length);

// As `accept4`; see `tcpr_accept`.
int tcpr_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags);

// As `connect`. A connection to a destination of the configuration (`[[service.outgoing]]`) is protected if its TCP socket
// was made by `tcpr_socket`, or if the program runs under `tcpr run`. It comes from the virtual IP. After a failover, a
// connect to the same destination gives the old connection back, where it left off (`tcpr_session_info` tells).
//
// On a backup such a connect waits until the member is master, as for a host that does not answer. The socket must not be
// bound, or be bound to the virtual IP. The port that `getsockname` gives may differ from the one that the peer sees.
//
// Errors beside those of `connect`: EINVAL (the socket is bound to another address; `tcpr_strerror` says more), ENOTCONN (this
// process cannot join a manager).
int tcpr_connect(int fd,
                 const struct sockaddr *address,
                 socklen_t length);

// As `shutdown`, on any descriptor.
int tcpr_shutdown(int fd, int how);

// As `getsockname`, on any descriptor.
int tcpr_getsockname(int fd, struct sockaddr *address, socklen_t *length);

// As `getpeername`, on any descriptor.
int tcpr_getpeername(int fd, struct sockaddr *address, socklen_t *length);

// As `getsockopt`, on any descriptor. TCP_ZEROCOPY_RECEIVE is refused with ENOPROTOOPT on protected sockets.
int tcpr_getsockopt(int fd, int level, int name, void *value, socklen_t *length);

// As `setsockopt`, on any descriptor. On protected sockets it refuses to turn on what protection does not go together with:
// SO_ZEROCOPY and TCP_FASTOPEN_CONNECT (ENOPROTOOPT), TCP_ULP (ENOENT), TCP_REPAIR (EPERM).
int tcpr_setsockopt(int fd,
                    int level,
                    int name,
                    const void *value,
                    socklen_t length);

// Ties `len` bytes of data to the session behind descriptor `fd`: whatever this program has to know in order to go on with the
// session. They take the place of what the last checkpoint of this session has said. `len` is at most TCPR_MAX_VALUE; with
// `len` = 0, `data` may be NULL. The bytes are copied.
//
// The data counts when the calling thread's turn ends, together with the output of that turn: after a failure there is all of
// both, or nothing. (To end the turn at once, call `tcpr_commit`. A read or accept that follows ends it, too, as after a write.) The checkpoint says that all input is done which this process
// had read from this session when it made the call, and no other input. From the first checkpoint on tcpr no longer
// infers for this session which input is done, and the process that takes over reads what came after the last checkpoint. So
// call it in each turn in which you have read from a session with checkpoints, when you have dealt with what you read. What a
// short write has left over is not covered: until it is written, a failover repeats the exchange, or resets the session.
//
// A session of an ended connection has no data any more.
//
// Returns 0, or -1 with errno EBADF (`fd` is not open), EINVAL (`fd` is no protected connection), EFAULT (`data` is not
// readable), EMSGSIZE (`len` is more than TCPR_MAX_VALUE), ENOSPC (no room: `data_bytes` in the configuration), ENOBUFS (this
// turn has given more than a MiB of data), EROFS (this member is not the master), ENOTCONN (the manager does not know the
// session any more, this process has not joined a manager, or the manager is gone), ENOTSUP (`standby = "hot"`). Nothing has
// changed then, except after ETIMEDOUT, where that is not known.
int tcpr_checkpoint(int fd,
                    const void *data,
                    size_t len);

// Gives the data of the last checkpoint of the session behind descriptor `fd`, by whichever process: at most `len` bytes of it are
// put into `buffer`, which is the caller's. With `len` = 0, `buffer` may be NULL: to ask for the size.
//
// To be called for a session that `tcpr_accept` or `tcpr_connect` has returned, before anything is read from it. A new session
// has no data, and a recovered one has what the last checkpoint said that counted.
//
// Returns the size of the data in bytes, which may be more than `len` (then the rest was not copied) and may be 0. Or -1 with
// errno ENODATA (this session has never had a checkpoint), EBADF (`fd` is not open), EINVAL (`fd` is no protected connection),
// EFAULT (`buffer` is not writable), ENOTCONN (the manager does not know the session any more, this process has not joined a
// manager, or the manager is gone), ENOTSUP (`standby = "hot"`). `buffer` is as before then.
ssize_t tcpr_restore(int fd,
                     void *buffer,
                     size_t len);

// Puts a value of `len` bytes under a key of `keylen` bytes, for the service as a whole: any process of the program gets it, on
// whichever member is the master. It takes the place of the value that is there. Key and value may be any bytes; `keylen` is 1
// to TCPR_MAX_KEY, `len` at most TCPR_MAX_VALUE. With `len` = 0, `value` may be NULL. The bytes are copied.
//
// The value counts when the calling thread's turn ends, together with the output of that turn, its checkpoints, and all else that
// it puts and deletes: after a failure there is all of it, or nothing. (To end the turn at once, call `tcpr_commit`.) Until
// then `tcpr_get` gives it to this process only. Turns of threads that use the same key end together. If two processes put
// the same key, the one whose turn ends last wins.
//
// Returns 0, or -1 with errno EINVAL (`keylen` is 0), EFAULT (`key` or `value` is not readable), EMSGSIZE (one of them is too long),
// ENOSPC (no room: `data_bytes` in the configuration), ENOBUFS (this turn has given more than a MiB of data), EROFS (this
// member is not the master), ENOTCONN (this process has not joined a manager, or the manager is gone), ENOTSUP (`standby =
// "hot"`). Nothing has changed then, except after ETIMEDOUT, where that is not known.
int tcpr_put(const void *key,
             size_t keylen,
             const void *value,
             size_t len);

// Gives the value under a key: at most `len` bytes of it are put into `buffer`, which is the caller's. With `len` = 0, `buffer` may
// be NULL: to ask for the size. On a backup, it is the value that this member has stored so far.
//
// Returns the size of the value in bytes, which may be more than `len` (then the rest was not copied) and may be 0. Or -1 with
// errno ENOENT (there is no such key), EINVAL (`keylen` is 0), EMSGSIZE (`keylen` is more than TCPR_MAX_KEY), EFAULT (`key` is not
// readable, or `buffer` not writable), ENOTCONN (this process has not joined a manager, or the manager is gone), ENOTSUP
// (`standby = "hot"`). `buffer` is as before then.
ssize_t tcpr_get(const void *key,
                 size_t keylen,
                 void *buffer,
                 size_t len);

// Deletes the value under a key, and the key. It counts as `tcpr_put` does.
//
// Returns 0, or -1 with errno ENOENT (there is no such key), or as `tcpr_put`.
int tcpr_delete(const void *key, size_t keylen);

// Gives the next key, in the order of their bytes, behind the key of `afterlen` bytes at `after`, which need not exist. With
// `afterlen` = 0, `after` may be NULL: the first one. At most `keylen` bytes of it are put into `key`, which is the caller's, and may be
// the same memory as `after`; TCPR_MAX_KEY are always enough. To visit all keys, begin with `afterlen` = 0, and go on with the
// key that was given. Keys that are put or deleted meanwhile may be visited or not, and the others are.
//
// Returns the length of the key in bytes, which may be more than `keylen` (then the rest was not copied), or 0: there is none. Or -1
// with errno EMSGSIZE (`afterlen` is more than TCPR_MAX_KEY), EFAULT (`after` is not readable, or `key` not writable), ENOTCONN
// (this process has not joined a manager, or the manager is gone), ENOTSUP (`standby = "hot"`). `key` is as before then.
ssize_t tcpr_iterate(const void *after,
                     size_t afterlen,
                     void *key,
                     size_t keylen);

// As `poll`. The calling thread's turn ends.
int tcpr_poll(struct pollfd *fds, nfds_t n, int timeout);

// As `ppoll`. The calling thread's turn ends.
int tcpr_ppoll(struct pollfd *fds, nfds_t n, const struct timespec *timeout, const sigset_t *mask);

// As `select`. The calling thread's turn ends.
int tcpr_select(int n, fd_set *reading, fd_set *writing, fd_set *failing, struct timeval *timeout);

// As `pselect`. The calling thread's turn ends.
int tcpr_pselect(int n,
                 fd_set *reading,
                 fd_set *writing,
                 fd_set *failing,
                 const struct timespec *timeout,
                 const sigset_t *mask);

// As `epoll_wait`. The calling thread's turn ends.
int tcpr_epoll_wait(int ep, struct epoll_event *events, int max, int timeout);

// As `epoll_pwait`. The calling thread's turn ends.
int tcpr_epoll_pwait(int ep, struct epoll_event *events, int max, int timeout, const sigset_t *mask);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* TCPR_H */
