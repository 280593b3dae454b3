"""The origin's plain resources: downloads, uploads, event streams, echoes, and ways to go wrong.

The first column of `ROUTES` is a method, the second a path; a path that ends in ``/`` is a prefix.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import random
import time
from collections.abc import Awaitable, Callable

from edged.lab import chat, websocket
from edged.lab.service import EventStream, HttpError, Service
from edged.lab.serving import Fields, Reply, Request, answer

Route = Callable[[Service, Request, Reply], Awaitable[None]]

_BLOCK = random.Random(0).randbytes(1 << 16)
_MAX_BYTES = 4 << 30
_PAGE = b"""<!doctype html><title>edged lab</title><h1>edged lab</h1>
<p id=state>loading</p><script>fetch("/echo").then(r=>r.json()).then(e=>{
document.getElementById("state").textContent="line "+e.client+", HTTP/"+e.version})</script>"""


def content(start: int, size: int) -> bytes:
    """Bytes ``start`` .. ``start + size`` of the endless deterministic download."""
    at = start % len(_BLOCK)
    repeated = _BLOCK * (-(-(at + size) // len(_BLOCK)))
    return repeated[at : at + size]


@functools.lru_cache(64)
def content_sha256(size: int) -> str:
    """SHA-256 of the first ``size`` bytes of the download, in hex."""
    digest = hashlib.sha256()
    for at in range(0, size, len(_BLOCK)):
        digest.update(_BLOCK[: min(len(_BLOCK), size - at)])
    return digest.hexdigest()


async def page(service: Service, request: Request, reply: Reply) -> None:
    """``GET /``: a page for people and browsers, and the answer to HTTP probes."""
    await service.answer(request, reply, 200, _PAGE, "text/html; charset=utf-8")


async def download(service: Service, request: Request, reply: Reply) -> None:
    """``GET /bytes/N``: N deterministic bytes, with ETag and ranges (RFC 9110, 14)."""
    size = _tail_number(request)
    start, end = 0, size
    fields: Fields = [
        ("content-type", "application/octet-stream"),
        ("accept-ranges", "bytes"),
        ("etag", f'"{content_sha256(size)}"'),
        *service.marks(request),
    ]
    status = 200
    wanted = request.headers.get("range", "")
    if wanted.startswith("bytes=") and "," not in wanted:
        first, _, last = wanted[6:].partition("-")
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if start >= end:
            raise HttpError(416, "range not satisfiable", [("content-range", f"bytes */{size}")])
        status = 206
        fields.append(("content-range", f"bytes {start}-{end - 1}/{size}"))
    fields.append(("content-length", str(end - start)))
    reply.head(status, fields, end=start == end)
    while start < end:
        chunk = content(start, min(len(_BLOCK), end - start))
        await reply.data(chunk)
        start += len(chunk)
    reply.end()


async def text(service: Service, request: Request, reply: Reply) -> None:
    """``GET /text/N``: about N bytes of compressible JSON."""
    rows = [{"id": i, "name": f"item {i}", "price": i * 7 % 100} for i in range(50)]
    document = {"rows": rows * max(1, _tail_number(request) // 2200)}
    await service.answer_json(request, reply, document)


async def upload(service: Service, request: Request, reply: Reply) -> None:
    """``POST`` or ``PUT /upload``: what arrived, as length and SHA-256 of the decoded body."""
    digest, length = hashlib.sha256(), 0
    async for chunk in service.chunks(request):
        digest.update(chunk)
        length += len(chunk)
    document = {"length": length, "sha256": digest.hexdigest()}
    coding = request.headers.get("content-encoding", "identity")
    await service.answer_json(request, reply, {**document, "content_encoding": coding})


async def echo(service: Service, request: Request, reply: Reply) -> None:
    """``/echo``: the request as it arrived."""
    body = await service.body(request)
    document = {
        "method": request.method,
        "target": request.target,
        "authority": request.authority,
        "version": request.version,
        "headers": request.fields,
        "trailers": request.body.trailers,
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "client": request.client,
        "endpoint": service.name,
        "early": request.early,
    }
    await service.answer_json(request, reply, document)


async def events(service: Service, request: Request, reply: Reply) -> None:
    """``GET /sse?n=&rate=&size=``: numbered events with the time each was sent."""
    count, rate = int(request.number("n", 10)), request.number("rate", 10.0)
    padding = "x" * int(request.number("size", 0))
    loop = asyncio.get_running_loop()
    stream = EventStream(service, request, reply)
    start = loop.time()
    for index in range(count):
        if rate > 0 and (wait := start + index / rate - loop.time()) > 0:
            await asyncio.sleep(wait)
        event: dict[str, object] = {"i": index, "t": time.time()}
        await stream.send({**event, "pad": padding} if padding else event)
    await stream.end()


async def slow(service: Service, request: Request, reply: Reply) -> None:
    """``/slow?s=``: answers after that many seconds, with when it was asked (`time.monotonic`)."""
    await service.body(request)
    asked_at = time.monotonic()
    seconds = request.number("s", 1.0)
    await asyncio.sleep(seconds)
    await service.answer_json(request, reply, {"slept": seconds, "asked_at": asked_at})


async def status(service: Service, request: Request, reply: Reply) -> None:
    """``/status/NNN?retry_after=``: that status."""
    code = _tail_number(request)
    if not 200 <= code <= 599:
        raise HttpError(400, "a status from 200 to 599")
    extra = service.marks(request)
    if retry_after := request.query.get("retry_after"):
        extra.append(("retry-after", retry_after))
    if code in (204, 304):
        reply.head(code, extra, end=True)
        return
    await answer(reply, code, b'{"status": %d}' % code, "application/json", extra)


async def executions(service: Service, request: Request, reply: Reply) -> None:
    """``GET /executions?id=``: how often requests with that id were carried out."""
    wanted = request.query.get("id")
    if wanted is None:
        await service.answer_json(request, reply, dict(service.executions))
    else:
        document = {"id": wanted, "count": service.executions[wanted]}
        await service.answer_json(request, reply, document)


async def trailers(service: Service, request: Request, reply: Reply) -> None:
    """``GET /trailers?n=``: an unframed body of n parts whose SHA-256 follows as a trailer."""
    digest = hashlib.sha256()
    fields = [("content-type", "text/plain"), ("trailer", "x-sha256"), *service.marks(request)]
    reply.head(200, fields)
    for index in range(int(request.number("n", 3))):
        part = f"part {index}\n".encode()
        digest.update(part)
        await reply.data(part)
    reply.end([("x-sha256", digest.hexdigest())])


async def hints(service: Service, request: Request, reply: Reply) -> None:
    """``GET /hints``: 103 Early Hints before the answer (RFC 8297)."""
    reply.informational(103, [("link", "</style.css>; rel=preload; as=style")])
    await service.answer_json(request, reply, {"hinted": True})


async def cut(service: Service, request: Request, reply: Reply) -> None:
    """``GET /cut?n=&framed=``: n bytes of a longer body, then the connection or stream breaks."""
    size = int(request.number("n", 1000))
    fields: Fields = [("content-type", "application/octet-stream"), *service.marks(request)]
    if request.query.get("framed", "1") != "0":
        fields.append(("content-length", str(2 * size)))
    reply.head(200, fields)
    await reply.data(content(0, size))
    await asyncio.sleep(0.05)  # so that the bytes leave before the break
    reply.abort()


def _tail_number(request: Request) -> int:
    tail = request.path.rpartition("/")[2]
    if not tail.isdigit() or int(tail) > _MAX_BYTES:
        raise HttpError(400, f"a number of at most {_MAX_BYTES} after the last slash")
    return int(tail)


ROUTES: tuple[tuple[str, str, Route], ...] = (
    ("GET", "/", page),
    ("GET", "/bytes/", download),
    ("GET", "/text/", text),
    ("POST", "/upload", upload),
    ("PUT", "/upload", upload),
    ("*", "/echo", echo),
    ("GET", "/sse", events),
    ("*", "/slow", slow),
    ("*", "/status/", status),
    ("GET", "/executions", executions),
    ("GET", "/trailers", trailers),
    ("GET", "/hints", hints),
    ("GET", "/cut", cut),
    ("GET", "/ws", websocket.echo),
    ("GET", "/v1/realtime", websocket.echo),
    ("POST", "/v1/chat/completions", chat.openai_chat),
    ("POST", "/v1/responses", chat.openai_responses),
    ("GET", "/v1/models", chat.openai_models),
    ("POST", "/v1/embeddings", chat.openai_embeddings),
    ("POST", "/v1/messages", chat.anthropic_messages),
    ("POST", "/v1beta/models/", chat.google_generate),
    ("POST", "/v1/models/", chat.google_generate),
)


def find(request: Request) -> Route:
    """The route of a request. Raises `HttpError` 404 or 405."""
    allowed = set()
    for method, path, route in ROUTES:
        prefix = path.endswith("/") and path != "/"
        if request.path == path or (prefix and request.path.startswith(path)):
            if method in ("*", request.method) or (method, request.method) == ("GET", "HEAD"):
                return route
            allowed.add(method)
    if allowed:
        raise HttpError(405, "method not allowed", [("allow", ", ".join(sorted(allowed)))])
    raise HttpError(404, f"nothing at {request.path}; see edged/lab/resources.py")
