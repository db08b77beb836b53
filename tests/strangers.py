#!/usr/bin/env python3
"""strangers.py SERVICE ADDRESS PORT SECONDS: a local user without rights who holds and floods all that a manager listens on.
Says what could be done, and ends."""
import os
import resource
import socket
import sys
import threading
import time

service, address, port, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
# What a name needs is loaded while it may be read.
socket.getaddrinfo("127.0.0.1", 1)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
end = time.monotonic() + seconds
counts = {}


def channel():
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    s.settimeout(5)
    s.connect(f"\0tcpr/{service}/channel")
    return s


def replication():
    return socket.create_connection((address, port), 5)


GUESS = b"\x82\xa6number\x01\xa4body\x84\xa7version\x03\xa3pid\x01\xa5token\xa20f\xa6linked\xc2"


def hold(what, make, words):
    held, n = [], 0
    while time.monotonic() < end:
        try:
            s = make()
            n += 1
            if words is not None:
                s.sendall(words)
            held.append(s)
            if len(held) > 2000:
                held.pop(0).close()
        except OSError:
            pass
    counts[what] = n


def flood():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    n = 0
    while time.monotonic() < end:
        for _ in range(50):
            s.sendto(os.urandom(90), (address, port))
        n += 50
        time.sleep(0.001)
    counts["datagrams"] = n


jobs = [
    ("silent", channel, None),
    ("half", channel, GUESS[:20]),
    ("guesses", channel, GUESS),
    ("dials", replication, None),
    ("offers", replication, b"tcpr\x01"),
]
threads = [threading.Thread(target=hold, args=job) for job in jobs] + [threading.Thread(target=flood)]
for t in threads:
    t.start()
for t in threads:
    t.join()
print(*(f"{what}={n}" for what, n in sorted(counts.items())))
