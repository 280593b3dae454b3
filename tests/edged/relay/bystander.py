"""A client that does no harm, in a process of its own: small flows, one after the other, timed.

    python bystander.py '{"port": 8443, "ca": "ca.pem", "token": "...", "target": "http://..."}'

``ready`` is printed after the first; when standard input ends, a line of JSON: the seconds that
each took, or what went wrong. Every third goes over a connection of its own.
"""

from __future__ import annotations

import http.client
import json
import select
import ssl
import sys
import time
from typing import Any
from uuid import uuid4

PACE_S = 0.02
PATIENCE_S = 10.0


def play(given: dict[str, Any]) -> list[float]:
    """Until standard input ends."""
    context = ssl.create_default_context(cafile=given["ca"])
    took: list[float] = []

    def connect() -> http.client.HTTPSConnection:
        port = given["port"]
        return http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=PATIENCE_S)

    kept = connect()
    while True:
        connection = connect() if len(took) % 3 == 2 else kept
        began = time.monotonic()
        connection.request(
            "POST",
            f"/.well-known/edged/flow/{uuid4().hex}",
            b"abc",
            {
                "proxy-authorization": f"Bearer {given['token']}",
                "edged-target": given["target"],
                "edged-ack": "0",
            },
        )
        response = connection.getresponse()
        body = response.read()
        took.append(time.monotonic() - began)
        if response.status != 200 or not body.endswith(b" 3"):
            raise SystemExit(f"{response.status} {body!r} after {len(took)}")
        if connection is not kept:
            connection.close()
        if len(took) == 1:
            print("ready", flush=True)
        if select.select([sys.stdin], [], [], PACE_S)[0]:
            return took


if __name__ == "__main__":
    print(json.dumps(play(json.loads(sys.argv[1]))))
