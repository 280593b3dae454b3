"""One request on an HTTP/2 connection: the `Responder` given to the handler, and what it queues."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from edged.downstream.stream import StreamExchange
from edged.messages import Headers, RequestHead

if TYPE_CHECKING:
    from edged.downstream.h2 import H2Connection


class H2Exchange(StreamExchange):
    """A stream.

    Invariant: bytes are queued only while the flow-control windows or the transport refuse them,
    so the order on the wire is the order of the calls.
    """

    __slots__ = ("connection", "queue", "queued", "stream_id", "trailers", "unreturned")

    def __init__(self, connection: H2Connection, stream_id: int, head: RequestHead) -> None:
        super().__init__()
        self.connection = connection
        self.stream_id = stream_id
        self.method = head.method
        self.expected = head.body_length
        self.awaits_continue = head.expects_continue
        self.unreturned = 0
        """Received bytes whose window was not given back to the client yet."""
        self.queue: deque[bytes] = deque()
        self.queued = 0
        self.trailers: Headers | None = None

    @property
    def client(self) -> str:
        """The client's address and port."""
        return self.connection.client

    @property
    def certificate(self) -> bytes | None:
        """The client's certificate."""
        return self.connection.certificate

    def _send_head(self, fields: Headers, *, end: bool) -> None:
        self.connection.send_head(self, fields, end=end)

    def _send_data(self, data: bytes) -> None:
        self.connection.send_data(self, data)

    def _send_end(self, trailers: Headers | None) -> None:
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
