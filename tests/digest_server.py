#!/usr/bin/env python3
"""Reads a stream to its end and answers with its length and digest, and a long body of numbered lines that begin as
the digest does. One thread a connection, blocking.

usage: digest_server.py PORT [ADDRESS]
"""
import hashlib
import random
import socket
import sys
import threading
import time

LINES = 18_750


def body(digest):
    return "".join(f"{digest[:8]}{i:07}\n" for i in range(LINES)).encode()


def serve(connection):
    try:
        with connection:
            digest, length = hashlib.sha256(), 0
            while part := connection.recv(65536):
                digest.update(part)
                length += len(part)
            if length == 0:
                return  # nothing was asked, or all was answered before a failover: there is only the end to see
            if random.random() < 0.5:
                time.sleep(random.random() / 2)
            name = digest.hexdigest()
            connection.sendall(f"{length} {name}\n".encode() + body(name))
    except OSError:
        pass


address = sys.argv[2] if len(sys.argv) > 2 else "0.0.0.0"
family = socket.AF_INET6 if ":" in address else socket.AF_INET
listener = socket.create_server((address, int(sys.argv[1])), family=family, backlog=4096)
while True:
    try:
        connection, _ = listener.accept()
    except OSError:
        continue
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
