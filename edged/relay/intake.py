"""Where the request bytes of a flow go, once they are taken: to its exchange."""

from __future__ import annotations

from edged.downstream.base import RequestSink
from edged.messages import Headers
from edged.relay.coding import Inflow
from edged.relay.upload import Inconsistent

_EARLY_BYTES = 256 << 10


class Intake:
    """The way of one flow's request bytes to its exchange: as they are, or decoded.

    Of a request to switch protocols those that follow it wait until the origin has agreed; if it
    does not they are nobody's.
    """

    __slots__ = ("_deaf", "_early", "_early_end", "_inflow", "_sink")

    def __init__(self, *, switches: bool) -> None:
        self._sink: RequestSink | None = None
        self._inflow: Inflow | None = None
        self._early: list[bytes] | None = [] if switches else None
        self._early_end = False
        self._deaf = False  # the origin refused what the bytes were meant for

    def decode(self, inflow: Inflow) -> None:
        """They are coded."""
        self._inflow = inflow

    def begin(self, sink: RequestSink) -> None:
        """The exchange has begun."""
        self._sink = sink
        if self._inflow is not None:
            self._inflow.sink = sink

    def body(self, data: bytes, taken: int) -> None:
        """The next bytes, ``taken`` with all before them. Raises `Inconsistent`."""
        if self._early is not None:
            self._early.append(data)
            if taken > _EARLY_BYTES:
                raise Inconsistent("the origin has not agreed to the other protocol yet")
        elif self._inflow is not None:
            self._inflow.data(data)
        elif self._sink is not None and not self._deaf:
            self._sink.body(data)

    def end(self, trailers: Headers | None) -> None:
        """They are complete."""
        if self._early is not None:
            self._early_end = True
        elif self._inflow is not None:
            self._inflow.end(trailers)
        elif self._sink is not None and not self._deaf:
            self._sink.body_end(trailers)

    def answered(self, *, agreed: bool) -> bool:
        """The origin answers, ``agreed`` that it switches: whether bytes had waited for that, and
        for nothing.
        """
        early, self._early = self._early, None
        if early is None:
            return False
        if not agreed:
            self._deaf = True
            return True
        if self._sink is not None:
            for data in early:
                self._sink.body(data)
            if self._early_end:
                self.end(None)
        return False

    def pause(self) -> None:
        """The origin takes no more for now."""
        if self._inflow is not None:
            self._inflow.pause()

    def resume(self) -> None:
        """It does again."""
        if self._inflow is not None:
            self._inflow.resume()

    def close(self) -> None:
        """Nobody wants the rest."""
        self._sink = self._early = None
        if self._inflow is not None:
            self._inflow.close()
            self._inflow = None
