"""What all routes of the origin share: its switches and counters, bodies in and out with their
content codings, errors as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from edged.lab import codings
from edged.lab.serving import Fields, Reply, Request, answer

_LEAST_CODED_BYTES = 256
BODILESS_METHODS = ("GET", "HEAD", "DELETE", "OPTIONS")
"""Carried out as soon as their head is there; others when their body is complete."""
_ID_FIELDS = ("x-lab-id", "idempotency-key", "x-request-id")


class HttpError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, fields: Fields | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.fields = fields or []


@dataclass(slots=True)
class Service:
    """Switches that tests turn while the origin runs, and what it counted."""

    name: str = "lab"
    token_rate: float = 50.0
    """Tokens per second of a stream unless the request says otherwise; 0: all at once."""
    tokens: int = 32
    """Tokens of an answer unless the request says otherwise."""
    encode: bool = True
    """Answer with a content coding that the client accepts."""
    accepts_encoding: tuple[str, ...] = codings.CODINGS
    """Content codings taken in request bodies; others get ``refusal``."""
    refusal: int = 415
    executions: Counter[str] = field(default_factory=Counter)
    """Requests carried out, by the id in x-lab-id, idempotency-key or x-request-id."""
    requests: int = 0

    def executed(self, request: Request) -> None:
        """The request is complete and is being carried out now."""
        for name in _ID_FIELDS:
            if value := request.headers.get(name):
                self.executions[value] += 1
                return

    async def chunks(self, request: Request) -> AsyncIterator[bytes]:
        """The decoded request body. Raises `HttpError` for a coding that is not taken."""
        name = request.headers.get("content-encoding", "identity").strip().lower()
        if name == "identity":
            async for chunk in request.body:
                yield chunk
        else:
            if name not in self.accepts_encoding:
                accepted = ", ".join(self.accepts_encoding) or "identity"
                raise HttpError(
                    self.refusal,
                    f"content coding {name} not taken",
                    [("accept-encoding", accepted)],
                )
            decoder = codings.decoder(name)
            async for chunk in request.body:
                yield decoder.decode(chunk)
            decoder.finish()
        if request.method not in BODILESS_METHODS:
            self.executed(request)

    async def body(self, request: Request) -> bytes:
        """The whole decoded request body."""
        return b"".join([chunk async for chunk in self.chunks(request)])

    async def json(self, request: Request) -> dict[str, object]:
        """The request body as a JSON object. Raises `HttpError`."""
        try:
            document = json.loads(await self.body(request))
        except ValueError as error:
            raise HttpError(400, f"body is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise HttpError(400, "body is not a JSON object")
        return document

    async def answer_json(
        self,
        request: Request,
        reply: Reply,
        document: object,
        status: int = 200,
        fields: Fields | None = None,
    ) -> None:
        """A JSON answer, coded if the client accepts it and it is worth it."""
        body = json.dumps(document, ensure_ascii=False).encode()
        await self.answer(request, reply, status, body, "application/json", fields)

    async def answer(
        self,
        request: Request,
        reply: Reply,
        status: int,
        body: bytes,
        content_type: str,
        fields: Fields | None = None,
    ) -> None:
        """A complete answer, coded if the client accepts it and it is worth it."""
        name = self._coding(request)
        extra = [*self.marks(request), *(fields or [])]
        if name and len(body) >= _LEAST_CODED_BYTES:
            coder = codings.encoder(name)
            body = coder.encode(body, flush=False) + coder.finish()
            extra += [("content-encoding", name), ("vary", "accept-encoding")]
        await answer(reply, status, body, content_type, extra)

    def marks(self, request: Request) -> Fields:
        """Fields that say who answered whom: the endpoint, and the line by its source address."""
        return [("x-lab-endpoint", self.name), ("x-lab-client", request.client)]

    def _coding(self, request: Request) -> str | None:
        accept = request.headers.get("accept-encoding", "")
        return codings.negotiate(accept) if self.encode and accept else None


class EventStream:
    """A ``text/event-stream`` answer, coded if the client accepts it and flushed per event."""

    def __init__(self, service: Service, request: Request, reply: Reply) -> None:
        self._reply = reply
        name = service._coding(request)
        self._coder = codings.encoder(name) if name else None
        fields = [
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-cache"),
            *service.marks(request),
        ]
        if name:
            fields += [("content-encoding", name), ("vary", "accept-encoding")]
        reply.head(200, fields)

    async def send(self, data: str | dict[str, object], event: str | None = None) -> None:
        """One event."""
        text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
        block = (f"event: {event}\n" if event else "") + f"data: {text}\n\n"
        await self.raw(block.encode())

    async def raw(self, block: bytes) -> None:
        """Bytes of the stream as they are."""
        if self._coder:
            block = self._coder.encode(block, flush=True)
        await self._reply.data(block)

    async def end(self) -> None:
        """End the stream."""
        if self._coder and (rest := self._coder.finish()):
            await self._reply.data(rest)
        self._reply.end()
