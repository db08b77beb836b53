#!/usr/bin/env python3
"""An echo server on Python's asyncio streams. Nothing in it knows of tcpr; `tcpr run` protects it all the same.

usage: asyncio_echo.py PORT [ADDRESS]
"""
import asyncio
import sys


async def echo(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()
    except OSError:
        writer.close()


async def main():
    address = sys.argv[2] if len(sys.argv) > 2 else "0.0.0.0"
    server = await asyncio.start_server(echo, address, int(sys.argv[1]), backlog=4096)
    async with server:
        await server.serve_forever()


asyncio.run(main())
