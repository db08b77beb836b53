#!/usr/bin/env python3
"""Connections of kinds that are negotiated: what a peer or a server may ask for beyond plain TCP.

usage: kinds.py serve KIND PORT [PEER]        an echo server
       kinds.py call KIND ADDRESS PORT        what comes on standard input is sent, and the answers are written
       kinds.py back KIND ADDRESS PORT OWN    four connections, to PORT and the next ones, on which lines are sent back; OWN is a port to listen on

KIND: plain, fastopen, mptcp, md5 (PEER is who has the key), options (of IPv6, for the destination and for each hop)
"""
import os
import select
import socket
import struct
import sys
import threading
import time

TCP_MD5SIG, TCP_FASTOPEN, TCP_FASTOPEN_CONNECT = 14, 23, 30
IPV6_HOPOPTS, IPV6_DSTOPTS = 54, 59


def key(peer):
    """struct tcp_md5sig."""
    address = struct.pack("=HH4s120x", socket.AF_INET, 0, socket.inet_aton(peer))
    return address + struct.pack("=BBHI80s", 0, 0, 6, 0, b"secret")


def new(kind, six, peer):
    family = socket.AF_INET6 if six else socket.AF_INET
    s = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_MPTCP if kind == "mptcp" else 0)
    if kind == "md5":
        s.setsockopt(socket.IPPROTO_TCP, TCP_MD5SIG, key(peer))
    if kind == "options":
        # One option each that whoever does not know it passes over.
        for level in (IPV6_HOPOPTS, IPV6_DSTOPTS):
            s.setsockopt(socket.IPPROTO_IPV6, level, bytes([0, 1, 0x1e, 8, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 0, 0]))
    return s


def serve(kind, port, peer=None):
    listener = new(kind, kind == "options", peer)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", port))
    if kind == "fastopen":
        listener.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 100)
    listener.listen(4096)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    clients, pending = {}, {}
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                try:
                    client, _ = listener.accept()
                except OSError:
                    continue
                client.setblocking(False)
                clients[client.fileno()], pending[client.fileno()] = client, b""
                poll.register(client, select.EPOLLIN)
                continue
            try:
                if not pending[fd]:
                    pending[fd] = clients[fd].recv(65536)
                    if not pending[fd]:
                        raise OSError("the end")
                pending[fd] = pending[fd][clients[fd].send(pending[fd]):]
            except BlockingIOError:
                pass
            except OSError:
                poll.unregister(fd)
                clients.pop(fd).close()
                pending.pop(fd)
                continue
            poll.modify(fd, select.EPOLLOUT if pending[fd] else select.EPOLLIN)


def call(kind, address, port):
    s = new(kind, ":" in address, address)
    s.settimeout(60)
    if kind == "fastopen":
        s.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    s.connect((address, port))
    poll = select.poll()
    poll.register(0, select.POLLIN)
    if kind != "fastopen":
        poll.register(s, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            data = os.read(0, 65536) if fd == 0 else s.recv(65536)
            if not data:
                return
            if fd == 0:
                # The first one opens the connection.
                s.sendall(data)
                poll.register(s, select.POLLIN)
            else:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()


def back(kind, address, port):
    while True:
        s = new(kind, ":" in address, address)
        try:
            if kind == "fastopen":
                s.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
            s.connect((address, port))
            for line in s.makefile("rb"):
                s.sendall(line)
        except OSError:
            pass
        s.close()
        time.sleep(0.1)


if sys.argv[1] == "back":
    own = socket.create_server(("", int(sys.argv[5])))
    for i in range(4):
        threading.Thread(target=back, args=(sys.argv[2], sys.argv[3], int(sys.argv[4]) + i)).start()
elif sys.argv[1] == "serve":
    serve(sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
else:
    call(sys.argv[2], sys.argv[3], int(sys.argv[4]))
