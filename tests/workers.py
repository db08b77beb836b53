# workers.py PORT LOG: a server whose main thread hands each request to a worker thread, as workers.c does it; the first word
# of a request says by which of Python's ways.
import multiprocessing
import os
import queue
import select
import socket
import struct
import sys
import threading

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("0.0.0.0", int(sys.argv[1])))
listener.listen(64)
events = select.epoll()
events.register(listener.fileno(), select.EPOLLIN)
connections = {}

read_end, write_end = os.pipe()
simple, queued = multiprocessing.SimpleQueue(), queue.Queue()
ways = {
    b"pipe": (lambda fd: os.write(write_end, struct.pack("i", fd)), lambda: struct.unpack("i", os.read(read_end, 4))[0]),
    b"simple": (simple.put, simple.get),
    b"queue": (queued.put, queued.get),
}


def work(get):
    while True:
        fd = get()
        connection = connections[fd]
        line = connection.recv(65536)
        if not line:
            del connections[fd]
            connection.close()
            continue
        with open(sys.argv[2], "ab") as log:
            log.write(line)
        connection.sendall(line)
        events.modify(fd, select.EPOLLIN | select.EPOLLONESHOT)


for _, get in ways.values():
    threading.Thread(target=work, args=(get,), daemon=True).start()
while True:
    for fd, _ in events.poll():
        if fd == listener.fileno():
            connection, _ = listener.accept()
            connections[connection.fileno()] = connection
            events.register(connection.fileno(), select.EPOLLIN | select.EPOLLONESHOT)
        else:
            word = connections[fd].recv(16, socket.MSG_PEEK | socket.MSG_DONTWAIT).split(b" ")[0]
            ways.get(word, ways[b"pipe"])[0](fd)
