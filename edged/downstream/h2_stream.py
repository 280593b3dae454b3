"""One request on an HTTP/2 connection: the `Responder` given to the handler, and what it queues."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from edged.downstream.base import RequestSink
from edged.downstream.h2_fields import response_fields
from edged.messages import Headers, RequestHead, ResponseHead

if TYPE_CHECKING:
    from edged.downstream.h2 import H2Connection


class H2Exchange:
    """A stream. After ``done`` it ignores every call.

    Invariant: bytes are queued only while the flow-control windows or the transport refuse them,
    so the order on the wire is the order of the calls.
    """

    __slots__ = (
        "awaits_continue",
        "connection",
        "done",
        "ended",
        "ended_by_head",
        "expected",
        "left",
        "method",
        "paused",
        "progress",
        "queue",
        "queued",
        "request_ended",
        "sink",
        "slow",
        "started",
        "stream_id",
        "trailers",
        "tunnel",
        "unreturned",
    )

    def __init__(self, connection: H2Connection, stream_id: int, head: RequestHead) -> None:
        self.connection = connection
        self.stream_id = stream_id
        self.method = head.method
        self.expected = head.body_length
        """Request body bytes still to come, where the client has said how many."""
        self.awaits_continue = head.expects_continue
        self.sink: RequestSink | None = None
        self.request_ended = False
        self.paused = False
        self.unreturned = 0
        """Received bytes whose window was not given back to the client yet."""
        self.progress = 0
        self.started = False
        self.tunnel = False
        self.left: int | None = None
        """Response body bytes still owed; ``None``: as many as come."""
        self.queue: deque[bytes] = deque()
        self.queued = 0
        self.slow = False
        self.ended = False
        """The handler has ended the response; it may still be queued."""
        self.ended_by_head = False
        """The response has no body: END_STREAM went with its head."""
        self.trailers: Headers | None = None
        self.done = False

    @property
    def client(self) -> str:
        """The client's address and port."""
        return self.connection.client

    @property
    def certificate(self) -> bytes | None:
        """The client's certificate."""
        return self.connection.certificate

    def informational(self, status: int, headers: Headers) -> None:
        """Send a 1xx head."""
        if self.done or self.started or not 100 <= status < 200 or status == 101:
            return
        if status == 100:
            self.awaits_continue = False
        fields = response_fields(status, headers, None)
        if fields is None:
            self.abort()
        else:
            self.connection.send_head(self, fields, end=False)

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
        self.connection.send_head(self, fields, end=length == 0)

    def data(self, data: bytes) -> None:
        """Send body bytes, as far as the client's windows allow; queue the rest."""
        if self.done or self.ended or not data:
            return
        if self.left is not None:
            if len(data) > self.left:
                if self.method != b"HEAD":
                    self.abort()
                return
            self.left -= len(data)
        self.connection.send_data(self, data)

    def end(self, trailers: Headers | None = None) -> None:
        """End the stream. A body cut short is an abort."""
        if self.done or self.ended:
            return
        if not self.started or (self.left is not None and self.left > 0):
            self.abort()
            return
        self.ended = True
        self.trailers = trailers
        self.connection.send_end(self)

    def abort(self) -> None:
        """Reset the stream."""
        if not self.done:
            self.connection.reset(self)

    def pause_body(self) -> None:
        """Keep the window closed from here on."""
        self.paused = True

    def resume_body(self) -> None:
        """Open it again; the first time, tell a client that waits to go ahead."""
        if self.done:
            return
        if self.awaits_continue and not self.started:
            self.informational(100, [])
        if self.paused:
            self.paused = False
            self.progress = 0
            self.connection.return_window(self, 0)
