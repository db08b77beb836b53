"""An echo server as Python programs write them: echo.py ADDRESS PORT thread|asyncio"""

import asyncio
import socket
import sys
import threading

address, port, style = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def serve(connection):
    with connection:
        while data := connection.recv(4096):
            connection.sendall(data)


def threads():
    with socket.create_server((address, port)) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


async def serve_stream(reader, writer):
    while data := await reader.read(4096):
        writer.write(data)
        await writer.drain()
    writer.close()


async def events():
    server = await asyncio.start_server(serve_stream, address, port)
    async with server:
        await server.serve_forever()


threads() if style == "thread" else asyncio.run(events())
