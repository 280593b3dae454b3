"""A response on one stream of a multiplexed connection: what HTTP/2 and HTTP/3 have in common.

RFC 9113 section 8.1 and RFC 9114 section 4.1 give a stream the same course: 1xx heads, one final
head, body bytes as many as its length says, trailers, the end; else the stream is reset.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final

from edged.downstream.base import RequestSink
from edged.downstream.h2_fields import response_fields
from edged.downstream.limits import Limits
from edged.messages import Headers, ResponseHead

_ENOUGH: Final = 1 << 62
"""Progress of a client that was told only now to begin."""


class StreamExchange(ABC):
    """The `Responder` of a stream. After ``done`` it ignores every call of its handler."""

    __slots__ = (
        "awaits_continue",
        "done",
        "ended",
        "ended_by_head",
        "expected",
        "left",
        "method",
        "paused",
        "progress",
        "request_ended",
        "sink",
        "slow",
        "started",
        "tunnel",
    )

    def __init__(self) -> None:
        self.method = b""
        self.expected: int | None = None
        """Request body bytes still to come, where the client has said how many."""
        self.awaits_continue = False
        self.sink: RequestSink | None = None
        self.request_ended = False
        self.paused = False
        self.progress = 0
        """Request body bytes that came since `stalled` was last asked."""
        self.started = False
        self.tunnel = False
        self.left: int | None = None
        """Response body bytes still owed; ``None``: as many as come."""
        self.slow = False
        """The handler was told to pause."""
        self.ended = False
        """The handler has ended the response; it may still be queued."""
        self.ended_by_head = False
        """The response has no body: its head ended the stream."""
        self.done = False

    def stalled(self, limits: Limits) -> bool:
        """Whether the client owes body bytes and sent too few since this was last asked."""
        if self.request_ended or self.paused or self.awaits_continue or self.method == b"CONNECT":
            return False
        if limits.duplex and self.started:
            return False
        progress, self.progress = self.progress, 0
        return progress < limits.body_stall_bytes

    def informational(self, status: int, headers: Headers) -> None:
        """Send a 1xx head."""
        if self.done or self.started or not 100 <= status < 200 or status == 101:
            return
        if status == 100:
            self.awaits_continue = False
            self.progress = _ENOUGH
        fields = response_fields(status, headers, None)
        if fields is None:
            self.abort()
        else:
            self._send_head(fields, end=False)

    def head(self, head: ResponseHead) -> None:
        """Send the final head; a response without a body ends with it."""
        if self.done or self.started:
            return
        status = head.status
        length = head.body_length
        self.tunnel = self.method == b"CONNECT" and 200 <= status < 300
        if self.tunnel:
            length = stated = None
        elif self.method == b"HEAD" or status == 304:
            stated = head.declared_length if head.declared_length is not None else length or None
            length = 0
        elif status == 204:
            length, stated = 0, None
        else:
            stated = length
        fields = response_fields(status, head.headers, stated)
        if fields is None or status < 200:
            self.abort()
            return
        self.started = True
        self.left = length
        self.ended_by_head = length == 0
        self._send_head(fields, end=length == 0)

    def data(self, data: bytes) -> None:
        """Send body bytes; what the client's windows do not allow is queued."""
        if self.done or self.ended or not data:
            return
        if self.left is not None:
            if len(data) > self.left:
                if self.method != b"HEAD":
                    self.abort()
                return
            self.left -= len(data)
        self._send_data(data)

    def end(self, trailers: Headers | None = None) -> None:
        """End the stream. A body cut short is an abort."""
        if self.done or self.ended:
            return
        if not self.started or (self.left is not None and self.left > 0):
            self.abort()
            return
        self.ended = True
        self._send_end(trailers)

    @abstractmethod
    def abort(self) -> None:
        """Reset the stream."""

    @abstractmethod
    def _send_head(self, fields: Headers, *, end: bool) -> None:
        """A field section with ``:status`` goes out."""

    @abstractmethod
    def _send_data(self, data: bytes) -> None:
        """Body bytes go out, or are queued."""

    @abstractmethod
    def _send_end(self, trailers: Headers | None) -> None:
        """Nothing more goes out after this, unless ``ended_by_head`` says that nothing can."""
