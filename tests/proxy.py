#!/usr/bin/env python3
"""A proxy: what each client says goes to a connection of its own to the backend, and back.

usage: proxy.py HOW PORT BACKEND BACKEND_PORT

HOW it is built: `thread` has a thread for each client, which connects when the client has said something; `first` connects
before; `poll` has one thread and connects when it accepts; `lazy` when the client has said something; `pool` has eight threads
that take the clients from a queue; `asyncio` speaks for itself.
"""
import asyncio
import queue
import selectors
import socket
import sys
import threading

how, port, backend = sys.argv[1], int(sys.argv[2]), (sys.argv[3], int(sys.argv[4]))
V6 = ":" in backend[0]


def listen():
    return socket.create_server(("::" if V6 else "", port), family=socket.AF_INET6 if V6 else socket.AF_INET, backlog=1024)


def pump(a, b):
    try:
        while d := a.recv(4096):
            b.sendall(d)
        b.shutdown(socket.SHUT_WR)
    except OSError:
        # Whoever is cut off on one side is on the other.
        for s in (a, b):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def serve(client, first=True):
    said = client.recv(4096) if first else b""
    upstream = socket.create_connection(backend)
    there = threading.Thread(target=pump, args=(upstream, client), daemon=True)
    there.start()
    upstream.sendall(said)
    pump(client, upstream)
    there.join()
    client.close()
    upstream.close()


def threads(first):
    listener = listen()
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0], first), daemon=True).start()


def pool():
    jobs = queue.Queue()

    def work():
        while True:
            serve(jobs.get())

    for _ in range(64):
        threading.Thread(target=work, daemon=True).start()
    listener = listen()
    while True:
        jobs.put(listener.accept()[0])


def poll(lazy):
    events = selectors.DefaultSelector()
    listener = listen()
    listener.setblocking(False)
    events.register(listener, selectors.EVENT_READ)
    other = {}

    def close(a):
        b = other.pop(a, None)
        for s in (a, b):
            if s is not None:
                other.pop(s, None)
                try:
                    events.unregister(s)
                except KeyError:
                    pass
                s.close()

    def connect(client):
        upstream = socket.create_connection(backend)
        other[client], other[upstream] = upstream, client
        events.register(upstream, selectors.EVENT_READ)

    while True:
        for key, _ in events.select():
            s = key.fileobj
            if s is listener:
                try:
                    client = listener.accept()[0]
                except BlockingIOError:
                    continue
                events.register(client, selectors.EVENT_READ)
                if not lazy:
                    connect(client)
                continue
            if s.fileno() < 0:
                continue
            try:
                if d := s.recv(4096):
                    if s not in other:
                        connect(s)
                    other[s].sendall(d)
                else:
                    close(s)
            except OSError:
                close(s)


async def aio():
    async def move(reader, writer):
        try:
            while d := await reader.read(4096):
                writer.write(d)
                await writer.drain()
        except OSError:
            pass
        writer.close()

    async def client(reader, writer):
        try:
            r, w = await asyncio.open_connection(*backend)
        except OSError:
            return writer.close()
        await asyncio.gather(move(reader, w), move(r, writer))

    server = await asyncio.start_server(client, "::" if V6 else None, port, backlog=1024)
    await server.serve_forever()


match how:
    case "thread":
        threads(True)
    case "first":
        threads(False)
    case "pool":
        pool()
    case "poll":
        poll(False)
    case "lazy":
        poll(True)
    case "asyncio":
        asyncio.run(aio())
