"""The contract between a client connection and what handles its requests.

A client connection (h1, h2) parses a head, calls the `Handler`, and from then on two objects talk
by plain calls in the same loop turn:

* the connection calls the `RequestSink` (request body, client gone, client slow or ready again);
* the handler's side calls the `Responder` (interim heads, head, data, end or abort).

Order on the responder: ``informational``* ``head`` ``data``* (``end`` | ``abort``). ``abort`` may
come at any time and means that the client must be able to tell: a reset stream or a connection
cut without the last chunk, never a clean end. After ``end``, ``abort`` or the sink's ``gone``
neither side calls the other again.
"""

from __future__ import annotations

from typing import Protocol

from edged.messages import Headers, RequestHead, ResponseHead


class Responder(Protocol):
    """A client's request as seen by its handler: where the answer goes."""

    @property
    def client(self) -> str:
        """The client's address and port, for the access log."""

    @property
    def certificate(self) -> bytes | None:
        """What the client's TLS has shown and ours has verified, in DER; usually nothing."""

    def informational(self, status: int, headers: Headers) -> None:
        """Pass on an interim response (1xx but 101)."""

    def head(self, head: ResponseHead) -> None:
        """Send the final head; the body is framed by ``head.body_length`` (``None``: chunked).

        Status 101 (and 2xx to CONNECT) switches to raw bytes both ways: from then on the sink's
        ``body`` gets and ``data`` sends them, ``end`` half-closes.
        """

    def data(self, data: bytes) -> None:
        """Send body bytes now, in this loop turn."""

    def end(self, trailers: Headers | None = None) -> None:
        """End the body cleanly. If fewer than ``body_length`` bytes were sent this is an abort."""

    def abort(self) -> None:
        """Break the response so that no client can take it for complete."""

    def pause_body(self) -> None:
        """Stop reading the request body (watermark reached)."""

    def resume_body(self) -> None:
        """Read on."""


class RequestSink(Protocol):
    """What a handler offers to the client connection for one request."""

    def body(self, data: bytes) -> None:
        """Request body bytes, transfer coding removed."""

    def body_end(self, trailers: Headers | None) -> None:
        """The request body is complete."""

    def gone(self) -> None:
        """The client vanished or reset the stream; nothing more will be read or written."""

    def pause_response(self) -> None:
        """The client's write buffer is above its high watermark."""

    def resume_response(self) -> None:
        """It drained."""


class Handler(Protocol):
    """Called once a request head is complete and well-formed.

    The request may have a body (``head.body_length != 0``): it follows through the sink, which
    for one without hears neither ``body`` nor ``body_end`` (but for raw bytes after a switch, where
    ``body_end`` is the client's half close and may come after the responder's ``end``). The
    handler may answer inside the call. With ``head.expects_continue`` the connection sends
    ``100 Continue`` when the handler calls ``resume_body`` for the first time.
    """

    def __call__(self, head: RequestHead, responder: Responder) -> RequestSink: ...
