"""The contract between an attempt and the upstream side.

`Upstreams.open` gives an attempt a stream on its path: at once when a pooled connection has room,
later otherwise. Everything is plain calls in the loop turn in which bytes arrived; nothing blocks.

Order on `StreamEvents`: ``stream_ready``, ``informational``*, ``head``, ``data``*, then exactly one
of ``end`` and ``failed``; ``failed`` may come any time before ``end``. After `Stream.cancel` or
`Pending.cancel` nothing is called any more.
"""

from __future__ import annotations

from typing import Protocol

from edged.messages import Headers, RequestHead, ResponseHead
from policies.model import Carrier, Failure, Path, RequestClass


class StreamEvents(Protocol):
    """What an attempt offers to its stream."""

    def stream_ready(self, stream: Stream) -> None:
        """A stream is there; the attempt now sends its head (in this call, or never)."""

    def informational(self, status: int, headers: Headers) -> None:
        """An interim response (1xx; 101 arrives as ``head``)."""

    def head(self, head: ResponseHead) -> None:
        """The final response head."""

    def data(self, data: bytes) -> None:
        """Response body bytes, transfer coding removed; after 101, raw bytes."""

    def end(self, trailers: Headers | None) -> None:
        """The response ended cleanly, with all its bytes."""

    def failed(self, failure: Failure) -> None:
        """The attempt is over without a complete response. A body cut short comes here."""

    def moved(self, path: Path) -> None:
        """The stream goes on over ``path`` from here: same endpoint, another line. Nothing of the
        request or response was lost or repeated. Any time between ``stream_ready`` and the end.
        """

    def stalled(self, reason: str) -> None:
        """The stream moved, and the peer was not heard on the new path in time: it may still go on,
        or not. Who may be asked elsewhere should be."""

    def pause_body(self) -> None:
        """The stream's send buffer is above its high watermark."""

    def resume_body(self) -> None:
        """It drained: send on."""


class Stream(Protocol):
    """One request and response on one upstream connection."""

    @property
    def carrier(self) -> Carrier:
        """What it runs on."""

    @property
    def reused(self) -> bool:
        """Whether the connection had carried an exchange before."""

    def send_head(self, head: RequestHead, *, end: bool) -> None:
        """Send the request head; ``end`` if there is no body (nor trailers)."""

    def send_data(self, data: bytes) -> None:
        """Send request body bytes (queued beyond the window; see ``pause_body``)."""

    def send_end(self, trailers: Headers | None = None) -> None:
        """End the request."""

    def cancel(self) -> None:
        """Give up: RST_STREAM or STOP_SENDING; an h1 connection is closed."""

    def forsake(self, failure: Failure) -> None:
        """Nothing comes over its connection any more: end that, and all that is on it."""

    def pause_reading(self) -> None:
        """Stop taking response bytes (backpressure reaches the peer)."""

    def resume_reading(self) -> None:
        """Take them again."""


class Pending(Protocol):
    """A wait for a stream; ends with ``stream_ready`` or ``failed`` on the events object."""

    def cancel(self) -> None:
        """Stop waiting; nothing is called any more."""


class Upstreams(Protocol):
    """All pools. One object a daemon."""

    def open(
        self,
        path: Path,
        events: StreamEvents,
        *,
        early_data: bool,
        upgrade: bool = False,
        request_class: RequestClass | None = None,
    ) -> Pending | None:
        """Ask for a stream for one request on ``path``; it arrives as ``events.stream_ready``.

        When a pooled connection has room, ``stream_ready`` is called inside this call and the
        result is ``None`` (the common case); else the result can cancel the wait.

        ``early_data`` permits 0-RTT (safe methods only). ``upgrade`` asks for a connection that can
        be switched to raw bytes (h1). ``request_class`` says how large the body is: carriers are
        chosen by it. Never raises: failures arrive as ``failed``, in a later turn.
        """

    def answered(
        self, path: Path, carrier: Carrier, request_class: RequestClass, latency_s: float
    ) -> None:
        """A request got its response head ``latency_s`` after it was sent. Not every one needs to
        be told.
        """

    def prepare(self, path: Path, streams: int) -> None:
        """So many requests may come to ``path`` at once, from one that is in doubt: open now what
        they would have to wait for.
        """
