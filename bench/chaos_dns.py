"""The laboratory's name server, on the origin's side: it knows the names that it was told.

    python chaos_dns.py ADDRESS NAME=ADDRESS ...

UDP and TCP, port 53; answers are good for `TTL_S`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.harness.nameserver import NameServer

TTL_S = 5
PORT = 53
READY = "ready"


async def serve(address: str, names: dict[str, str]) -> None:
    """Answer, for ever."""
    server = NameServer(address, PORT)
    server.ttl = TTL_S
    server.zone = {(name, "A"): [where] for name, where in names.items()}
    async with server:
        print(READY, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], dict(pair.split("=") for pair in sys.argv[2:])))
