"""The origin's processes: as many of the lab's origins as addresses are given, each over h1, h2 and
h3 on port 443, and in cleartext on port 80.

    python origin_side.py --directory KEYS --engine aioquic 10.72.1.1 10.72.2.1

They share one count of executions. ``READY`` is printed when all listen; the process runs until
it is ended.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edged.lab.certs import Certificates
from edged.lab.origin import Origin
from edged.lab.service import Service

READY = "ready"
PORT = 443
CLEARTEXT_PORT = 80


async def serve(certificates: Certificates, addresses: list[str], engine: str) -> None:
    """Listen on all addresses, for ever."""
    first: Service | None = None
    for number, address in enumerate(addresses, 1):
        service = Service(name=f"e{number}")
        if first is not None:
            service.executions = first.executions
        first = first or service
        origin = Origin(certificates, service=service, h3_engine=engine)
        await origin.start(address, PORT, cleartext_port=CLEARTEXT_PORT)
    print(READY, flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--engine", default="aioquic")
    parser.add_argument("addresses", nargs="+")
    args = parser.parse_args()
    keys = [args.directory / name for name in ("ca.pem", "lab.pem", "lab.key")]
    work = serve(Certificates(*keys), args.addresses, args.engine)
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
    else:
        uvloop.run(work)


if __name__ == "__main__":
    main()
