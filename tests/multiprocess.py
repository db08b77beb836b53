# multiprocess.py PORT LOG WAY: a server of four processes made by multiprocessing. Each answers lines with its number before
# them, and adds what it has run to the log. WAY: shared (they accept from one listener) or sent (the parent accepts, and sends
# each connection to one of them).
import multiprocessing
import os
import selectors
import socket
import sys
from multiprocessing import reduction

PORT, LOG, WAY = int(sys.argv[1]), sys.argv[2], sys.argv[3]


def serve(selector, connection):
    line = connection.recv(65536)
    if not line:
        selector.unregister(connection)
        connection.close()
        return
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, line)
    os.close(log)
    connection.sendall(b"%d %s" % (os.getpid(), line))


def work(listener, pipe):
    selector = selectors.DefaultSelector()
    source = listener if pipe is None else pipe
    selector.register(source, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not source:
                serve(selector, key.fileobj)
                continue
            try:
                if pipe is None:
                    connection, _ = listener.accept()
                else:
                    connection = socket.socket(fileno=reduction.recv_handle(pipe))
            except BlockingIOError:
                continue
            except EOFError:
                return
            connection.setblocking(True)
            selector.register(connection, selectors.EVENT_READ)


multiprocessing.set_start_method("fork")
listener = socket.create_server(("0.0.0.0", PORT), backlog=100)
pipes, processes = [], []
for _ in range(4):
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=work, args=(listener, theirs if WAY == "sent" else None), daemon=True)
    listener.setblocking(WAY == "sent")
    process.start()
    theirs.close()
    pipes.append(ours)
    processes.append(process)
n = 0
while WAY == "sent":
    connection, _ = listener.accept()
    reduction.send_handle(pipes[n % 4], connection.fileno(), processes[n % 4].pid)
    connection.close()
    n += 1
for process in processes:
    process.join()
