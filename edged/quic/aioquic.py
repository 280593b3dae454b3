"""What a client's and a server's connection on `aioquic` have in common."""

from __future__ import annotations

from typing import Any

from aioquic.quic.connection import MAX_STREAM_DATA_FRAME_CAPACITY, QuicConnection
from aioquic.quic.packet import QuicFrameType

from edged.quic import STREAM_WINDOW_BYTES, message_fits


class CreditConnection(QuicConnection):
    """Moves a stream's receive window only for bytes that were delivered and not held.

    The base class doubles the window whenever half of it was used, so that after 100 MB a paused
    stream could still pile up 100 MB.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.held: set[int] = set()

    def _write_stream_limits(self, builder: Any, space: Any, stream: Any) -> None:
        limit = stream.max_stream_data_local
        if not limit:
            return
        delivered = stream.receiver.starting_offset()
        if limit - delivered < STREAM_WINDOW_BYTES // 2 and stream.stream_id not in self.held:
            limit = stream.max_stream_data_local = delivered + STREAM_WINDOW_BYTES
        if stream.max_stream_data_local_sent != limit:
            frame = builder.start_frame(
                QuicFrameType.MAX_STREAM_DATA,
                capacity=MAX_STREAM_DATA_FRAME_CAPACITY,
                handler=self._on_max_stream_data_delivery,
                handler_args=(stream,),
            )
            frame.push_uint_var(stream.stream_id)
            frame.push_uint_var(limit)
            stream.max_stream_data_local_sent = limit


class Streams:
    """The part of an engine that concerns one stream at a time."""

    _quic: CreditConnection
    exact_credit = True

    def reset(self, stream_id: int, code: int) -> None:
        """RESET_STREAM, if the sending side is still open."""
        stream = self._quic._streams.get(stream_id)
        if stream is not None and not stream.sender.is_finished:
            self._quic.reset_stream(stream_id, code)

    def stop(self, stream_id: int, code: int) -> None:
        """STOP_SENDING, if the receiving side is still open."""
        stream = self._quic._streams.get(stream_id)
        if stream is not None and not stream.receiver.is_finished:
            self._quic.stop_stream(stream_id, code)

    def message(self, data: bytes, *, waiting: int, spare: bool) -> bool:
        """See `Engine.message`."""
        quic, loss = self._quic, self._quic._loss
        if not quic._remote_max_datagram_frame_size or quic._datagrams_pending:
            return False
        window, in_flight = loss.congestion_window, loss.bytes_in_flight
        if not message_fits(len(data), window, in_flight, waiting=waiting, spare=spare):
            return False
        quic.send_datagram_frame(data)
        return True

    def unsent(self, stream_id: int) -> int:
        """Bytes queued on a stream that were never sent (flow control, congestion, pacing)."""
        stream = self._quic._streams.get(stream_id)
        return 0 if stream is None else stream.sender._buffer_stop - stream.sender.highest_offset

    def hold(self, stream_id: int, held: bool) -> None:
        """Give a stream no further credit."""
        if held:
            self._quic.held.add(stream_id)
        else:
            self._quic.held.discard(stream_id)
