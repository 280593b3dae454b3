"""A WebSocket echo (RFC 6455): the shape of the OpenAI Realtime and Gemini Live APIs."""

from __future__ import annotations

import base64
import hashlib

from edged.lab.service import HttpError, Service
from edged.lab.serving import Reply, Request

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CLOSE, _PING, _PONG = 0x8, 0x9, 0xA
_MAX_FRAME_BYTES = 16 << 20


async def echo(service: Service, request: Request, reply: Reply) -> None:
    """``GET /ws``: every message comes back as it came, frame by frame."""
    key = request.headers.get("sec-websocket-key", "")
    if request.headers.get("upgrade", "").lower() != "websocket" or not key:
        raise HttpError(
            426, "WebSocket only", [("upgrade", "websocket"), ("connection", "upgrade")]
        )
    accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()
    fields = [("upgrade", "websocket"), ("connection", "upgrade"), ("sec-websocket-accept", accept)]
    if offered := request.headers.get("sec-websocket-protocol"):
        fields.append(("sec-websocket-protocol", offered.split(",")[0].strip()))
    reply.head(101, [*fields, *service.marks(request)])
    pending = bytearray()
    async for data in request.body:
        pending += data
        while frame := _take(pending):
            first, payload = frame
            opcode = first & 0x0F
            if opcode == _PING:
                first = 0x80 | _PONG
            if opcode != _PONG:
                await reply.data(_frame(first, payload))
            if opcode == _CLOSE:
                reply.end()
                return
    reply.end()


def _take(pending: bytearray) -> tuple[int, bytes] | None:
    """The first complete frame, unmasked, cut off ``pending``. Raises `ConnectionError`."""
    if len(pending) < 2:
        return None
    size, at = pending[1] & 0x7F, 2
    if size >= 126:
        width = 2 if size == 126 else 8
        if len(pending) < at + width:
            return None
        size = int.from_bytes(pending[at : at + width], "big")
        at += width
    if not pending[1] & 0x80 or size > _MAX_FRAME_BYTES:
        raise ConnectionAbortedError("an unmasked or oversized frame")
    if len(pending) < at + 4 + size:
        return None
    mask = pending[at : at + 4]
    payload = pending[at + 4 : at + 4 + size]
    first = pending[0]
    del pending[: at + 4 + size]
    repeated = bytes(mask) * (size // 4 + 1)
    plain = int.from_bytes(payload, "big") ^ int.from_bytes(repeated[:size], "big")
    return first, plain.to_bytes(size, "big")


def _frame(first: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2, "big") + payload
    return bytes((first, 127)) + size.to_bytes(8, "big") + payload
