#!/usr/bin/env python3
"""A sandbox provider that exists only to be tested against.

It stands in for a third-party provider plugin reached over HTTP: one URL takes
JSON-RPC 2.0 requests, hands out pretend sandboxes and remembers which of them
are alive.  Three things make it useful in a test:

* it is strict: every request that departs from the protocol is refused and
  counted, so that a test can end with "no protocol violations";
* it misbehaves on demand: lost answers, cut connections, half answers, wrong
  ids, slow bytes ..., chosen per request, by seeded chance, or from outside;
* it never forgets: what lives on the provider's side, and how often each thing
  was asked for, can be read back and compared with what the database believes.

Start it with ``http_provider.py --port 0 --token secret --ready-file FILE``.
README.md in this directory describes the faults and the admin endpoints.
Python 3.11, standard library only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import sys

from provider.connection import Connection
from provider.faults import FaultPlan
from provider.sandboxes import Journal, Provider
from provider.server import Server


def write_atomically(path: str, text: str) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)


async def serve(options: argparse.Namespace) -> None:
    token = options.token
    if token is None:
        with open(options.token_file, encoding="utf-8") as file:
            token = file.read().strip()
    lookup = options.variant == "lookup"
    idempotent = lookup if options.idempotent is None \
        else options.idempotent == "yes"
    journal = Journal(options.state) if options.state else None
    provider = Provider(lookup, idempotent, journal)
    for method in options.without:
        del provider.handlers[method]
    server = Server(provider, FaultPlan(options.seed), token, options.log)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    listener = await loop.create_server(
        lambda: Connection(server), options.host, options.port, backlog=4096)
    port = listener.sockets[0].getsockname()[1]
    if options.ready_file:
        write_atomically(options.ready_file, f"{port}\n")
    print(f"listening on {port}", flush=True)
    await stop.wait()
    listener.close()
    for connection in list(server.connections):
        connection.transport.abort()
    server.provider.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="A sandbox provider over HTTP that misbehaves on demand.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 picks one")
    token = parser.add_mutually_exclusive_group(required=True)
    token.add_argument("--token", help="the bearer token to insist on")
    token.add_argument("--token-file", help="a file that holds it")
    parser.add_argument("--variant", choices=("lookup", "plain"),
                        default="lookup",
                        help="plain has no find, list and cancel methods")
    parser.add_argument("--without", action="append", default=[],
                        metavar="METHOD", help="has no such method")
    parser.add_argument("--idempotent", choices=("yes", "no"),
                        help="repeat an acquire by its key (default: yes for "
                             "lookup, no for plain)")
    parser.add_argument("--seed", type=int, default=0, help="for chaos")
    parser.add_argument("--state", help="remember sandboxes in this file")
    parser.add_argument("--log", help="append one JSON line per request")
    parser.add_argument("--ready-file", help="write the port here")
    options = parser.parse_args(arguments)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(serve(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
