#!/usr/bin/env python3
"""An echo server that becomes a daemon after it has begun to listen.

usage: daemon_echo.py PORT
"""
import ctypes
import select
import socket
import sys

listener = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=4096)
listener.setblocking(False)
if ctypes.CDLL(None).daemon(1, 1) != 0:
    sys.exit("daemon failed")

poll = select.epoll()
poll.register(listener, select.EPOLLIN)
clients = {}
pending = {}


def close(fd):
    poll.unregister(fd)
    clients.pop(fd).close()
    pending.pop(fd)


while True:
    for fd, _ in poll.poll():
        if fd == listener.fileno():
            try:
                client, _ = listener.accept()
            except OSError:
                continue
            client.setblocking(False)
            clients[client.fileno()] = client
            pending[client.fileno()] = b""
            poll.register(client, select.EPOLLIN)
            continue
        try:
            if not pending[fd]:
                pending[fd] = clients[fd].recv(65536)
                if not pending[fd]:
                    close(fd)
                    continue
            pending[fd] = pending[fd][clients[fd].send(pending[fd]):]
        except BlockingIOError:
            pass
        except OSError:
            close(fd)
            continue
        poll.modify(fd, select.EPOLLOUT if pending[fd] else select.EPOLLIN)
