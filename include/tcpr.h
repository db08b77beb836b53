/* tcpr: keeps TCP connections alive through the death of a process or machine.
 *
 * The calls that are named after one of the C library have its parameters, results and errno. They act on
 * protected descriptors and on any others alike, and so do the plain names: it is only where sessions are made that
 * the name matters (tcpr_socket). All calls may be made by any thread.
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


// How a connection came to this process.
enum tcpr_origin {
  // A peer connected.
  TCPR_ORIGIN_NEW = 0,
  // It was taken over from the partner, or from an earlier process.
  TCPR_ORIGIN_RECOVERED = 1,
  // This process connected.
  TCPR_ORIGIN_CONNECTED = 2,
  // It came from the parent process.
  TCPR_ORIGIN_INHERITED = 3,
};

// The role of this member.
enum tcpr_role {
  // Not decided yet.
  TCPR_ROLE_STARTING = 0,
  // Standing by.
  TCPR_ROLE_BACKUP = 1,
  // Serving.
  TCPR_ROLE_MASTER = 2,
  // Silent, until it knows whether it may serve.
  TCPR_ROLE_FENCED = 3,
};

// What is known of a protected connection. Offsets count bytes of a direction since the connection was opened.
struct tcpr_session_info {
  // Number of the session; the same on both members.
  uint32_t session;
  // How it came to this process.
  enum tcpr_origin origin;
  // Input before this offset is done: it will not be read again after a failover.
  uint64_t in_done;
  // Input before this offset is stored by the partner.
  uint64_t in_stored;
  // Output before this offset may be seen by the peer.
  uint64_t out_done;
  // Output before this offset is stored by the partner.
  uint64_t out_stored;
  // Not zero: its state could not be known after a crash, and it will be reset.
  int torn;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Joins the manager. Under `tcpr run` that is its manager, and `config` is ignored; otherwise one is started
// as a thread of this process, for which the process needs its privileges now.
//
// `config` is the path of the configuration; NULL: what TCPR_CONFIG names, else /etc/tcpr/tcpr.toml. Calling it
// again does nothing. Not needed if sockets are made by `tcpr_socket`: the first `tcpr_bind` does the same.
//
// Returns 0, or -1 with errno ENOTCONN (no manager answers, or none could be started), EACCES (not started by
// this manager), ENOTSUP (libtcpr was loaded by dlopen, so that its hooks are not reached). `tcpr_strerror` says
// more.
int tcpr_init(const char *config);

// The role of this member: a `tcpr_role`, or -1 with errno ENOTCONN if there is no manager.
int tcpr_get_role(void);

// Waits until this member has a role. `timeout_ms` below zero waits without end.
//
// Returns 0, or -1 with errno ETIMEDOUT, EINVAL (no such role), ENOTCONN (no manager, or it is gone).
// The calling thread's turn ends.
int tcpr_wait_role(int role, int timeout_ms);

// What is known of a protected connection; `tcpr_session_info.origin` tells recovered from new ones.
//
// Returns 0, or -1 with errno EINVAL (no protected connection), EFAULT, ENOTCONN, ENOENT (the manager does not
// know it).
int tcpr_session_info(int fd,
                      struct tcpr_session_info *info);

// Says that the next `n` bytes of input of a connection are done: they will not be read again after a failover.
// From the first call on nothing is inferred for this connection: a server that keeps parts of messages calls it
// with 0 as soon as it has accepted. It takes effect when the turn ends.
//
// Returns 0, or -1 with errno EINVAL (no protected connection), ENOTCONN.
int tcpr_consume(int fd,
                 size_t n);

// Ends the calling thread's turn: what it has done so far becomes visible together.
//
// Returns 0, or -1 with errno ENOTCONN.
int tcpr_commit(void);

// Hands the service over to the partner, without loss. What becomes of this process is its manager's affair:
// under `tcpr run` it is ended and started again as the backup's.
//
// Returns 0 once the manager has agreed, or -1 with errno ENOTCONN, or what hinders the manager.
int tcpr_switchover(void);

// Why the last `tcpr_` call of this thread failed, for people. Valid until the next one fails; empty at first.
const char *tcpr_strerror(void);

// The version of libtcpr.
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

// As `send`, on any descriptor.
ssize_t tcpr_send(int fd, const void *buffer, size_t n, int flags);

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

// As `socket`. A TCP socket made by it is protected if it is bound to a protected port and listens.
int tcpr_socket(int domain, int kind, int protocol);

// As `bind`. The first one to an address with a port joins the manager, as `tcpr_init(NULL)` does; if that fails, so does it,
// with errno ENOTCONN or what `tcpr_init` gives. A virtual address may be bound on the backup too.
int tcpr_bind(int fd,
              const struct sockaddr *address,
              socklen_t length);

// As `listen`, on any descriptor.
int tcpr_listen(int fd, int backlog);

// As `accept`. On a protected port, connections that were taken over come first, as if they had just connected.
int tcpr_accept(int fd,
                struct sockaddr *address,
                socklen_t *length);

// As `accept4`; see `tcpr_accept`.
int tcpr_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags);

// As `connect`. Connections of TCP sockets to destinations of the configuration (`[[service.outgoing]]`) are protected, if
// the socket was made by `tcpr_socket` or the program runs under `tcpr run`: they come from the virtual IP, and after a
// failover connecting to the same destination gives the old connection back, where it left off (`tcpr_session_info` tells).
// On a backup they wait for its turn to be master, as for a host that does not answer. The socket is not bound, or bound to
// the virtual IP; `getsockname` tells a port that may be another than the one that the peer sees. Errors beside those of
// `connect`: EINVAL (bound to another address; `tcpr_strerror` says more), ENOTCONN (no manager).
int tcpr_connect(int fd,
                 const struct sockaddr *address,
                 socklen_t length);

// As `shutdown`, on any descriptor.
int tcpr_shutdown(int fd, int how);

// As `getsockname`.
int tcpr_getsockname(int fd, struct sockaddr *address, socklen_t *length);

// As `getpeername`.
int tcpr_getpeername(int fd, struct sockaddr *address, socklen_t *length);

// As `getsockopt`.
int tcpr_getsockopt(int fd, int level, int name, void *value, socklen_t *length);

// As `setsockopt`.
int tcpr_setsockopt(int fd, int level, int name, const void *value, socklen_t length);

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
