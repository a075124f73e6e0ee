#!/usr/bin/env python3
"""Puts TLS in front of a server that has none, for tests.

``tls_front.py --certificate FILE --key FILE --target 127.0.0.1:PORT
--ready-file FILE`` accepts TLS on a free port of loopback, writes that port to
the file and passes bytes both ways.  ``--redirect URL`` answers every request
with a redirect instead, without a target.  Python 3.11, standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import ssl


async def pass_on(source: asyncio.StreamReader,
                  sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()


async def serve(options: argparse.Namespace) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.certificate, options.key)

    async def accept(reader: asyncio.StreamReader,
                     writer: asyncio.StreamWriter) -> None:
        if options.redirect:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: "
                         + options.redirect.encode()
                         + b"\r\nContent-Length: 0\r\n"
                         b"Connection: close\r\n\r\n")
            await writer.drain()
            writer.close()
            return
        host, _, port = options.target.rpartition(":")
        try:
            inner, outer = await asyncio.open_connection(host, int(port))
        except OSError:
            writer.close()
            return
        await asyncio.gather(pass_on(reader, outer), pass_on(inner, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    temporary = f"{options.ready_file}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(f"{port}\n")
    os.replace(temporary, options.ready_file)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--target")
    parser.add_argument("--redirect")
    parser.add_argument("--ready-file", required=True)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
