"""The proxy one would write in an afternoon: an ASGI server and httpx. A peer for `bench/proxy.py`.

python bench/asgi_httpx_proxy.py PORT ORIGIN_URL
"""

from __future__ import annotations

import sys
from typing import Any

import httpx
import uvicorn

_HOP = {b"connection", b"keep-alive", b"transfer-encoding", b"host", b"upgrade", b"te"}


class Proxy:
    """Streams both bodies, pools upstream connections."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.client = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=100)
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return

        async def body() -> Any:
            more = True
            while more:
                message = await receive()
                more = message.get("more_body", False)
                yield message.get("body", b"")

        has_body = scope["method"] not in ("GET", "HEAD")
        request = self.client.build_request(
            scope["method"],
            self.origin + scope["raw_path"].decode(),
            headers=[item for item in scope["headers"] if item[0] not in _HOP],
            content=body() if has_body else None,
        )
        response = await self.client.send(request, stream=True)
        headers = [(k.lower(), v) for k, v in response.headers.raw if k.lower() not in _HOP]
        await send(
            {"type": "http.response.start", "status": response.status_code, "headers": headers}
        )
        async for part in response.aiter_raw():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        await response.aclose()


if __name__ == "__main__":
    uvicorn.run(
        Proxy(sys.argv[2]),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        log_level="critical",
        lifespan="off",
        access_log=False,
    )
