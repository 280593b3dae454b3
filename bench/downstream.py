"""How many requests a second the client side alone takes: wrk against a static 1 KB answer.

    python bench/downstream.py [--seconds 5] [--connections 64] [--loop uvloop|asyncio]
                               [--idle 5000] [--profile]

Prints one JSON object. ``us_per_request`` is CPU of the server process. ``--idle N`` opens N
keep-alive connections instead, each after one request, and prints their memory.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import re
import resource
import shutil
import socket
import sys
import time

import psutil
import uvloop

from edged.downstream.base import RequestSink, Responder
from edged.downstream.limits import Limits
from edged.downstream.listener import Listener
from edged.headers import ANSWERED
from edged.messages import RequestHead, ResponseHead

_BODY = b"x" * 1024
_HEADERS = [
    (b"content-type", b"application/json"),
    (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
    (b"server", b"bench"),
    (b"via", b"1.1 edged"),
]


def static(head: RequestHead, responder: Responder) -> RequestSink:
    """Answer 1 KB."""
    responder.head(ResponseHead(200, list(_HEADERS), len(_BODY)))
    responder.data(_BODY)
    responder.end()
    return ANSWERED


async def load(args: argparse.Namespace) -> dict[str, object]:
    """Run wrk and read its rate."""
    listener = Listener(static)
    host, port = await listener.start("127.0.0.1", 0)
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("bench/downstream.py needs wrk")
    profile = cProfile.Profile()
    before = time.process_time()
    if args.profile:
        profile.enable()
    process = await asyncio.create_subprocess_exec(
        wrk,
        *("-t1", f"-c{args.connections}", f"-d{args.seconds}s", f"http://{host}:{port}/v1/x"),
        stdout=asyncio.subprocess.PIPE,
    )
    out = (await process.communicate())[0].decode()
    cpu_s = time.process_time() - before
    if args.profile:
        profile.disable()
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(25)
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", out)[0])
    requests = listener.hub.requests_total
    await listener.close()
    return {
        "loop": args.loop,
        "requests_per_s": round(rate),
        "us_per_request": round(cpu_s / requests * 1e6, 1),
        "errors": "Socket errors" in out or "Non-2xx" in out,
    }


def open_idle(address: tuple[str, int], count: int) -> None:
    """In a child process: connect, ask once, stay."""
    sockets = []
    for _ in range(count):
        sock = socket.create_connection(address)
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.recv(65536)
        sockets.append(sock)
    os.write(1, b"ready\n")
    sys.stdin.buffer.read(1)


async def idle(args: argparse.Namespace) -> dict[str, object]:
    """Memory of idle keep-alive connections."""
    wanted = 2 * args.idle + 100
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    listener = Listener(static, Limits(connections=args.idle + 10))
    host, port = await listener.start("127.0.0.1", 0)
    me = psutil.Process()

    async def clients(count: int) -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, "--open-idle", host, str(port), str(count)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        await process.stdout.readline()
        return process

    warm = await clients(100)
    before = me.memory_info().rss
    many = await clients(args.idle - 100)
    grown = me.memory_info().rss - before
    open_now = len(listener.hub.connections)
    for process in (warm, many):
        await process.communicate(b".")
    await listener.close()
    return {"idle": open_now, "bytes_each": round(grown / (open_now - 100))}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--idle", type=int, default=0)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--open-idle", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open_idle:
        open_idle((args.open_idle[0], int(args.open_idle[1])), int(args.open_idle[2]))
        return
    work = idle(args) if args.idle else load(args)
    factory = uvloop.new_event_loop if args.loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(runner.run(work)))


if __name__ == "__main__":
    main()
