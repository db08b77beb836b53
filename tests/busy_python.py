# busy_python.py PORT: an echo server by lines with a thread for each connection, and one that computes: between a read and its
# answer a thread waits for the interpreter for a quarter of a second.
import socket
import sys
import threading

listener = socket.create_server(("0.0.0.0", int(sys.argv[1])), backlog=64)


def serve(connection):
    for line in connection.makefile("rb"):
        connection.sendall(line)


def compute():
    while True:
        pass


sys.setswitchinterval(0.25)
threading.Thread(target=compute).start()
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
