"""HTTP/1.1 on a client connection (RFC 9112): requests in, one after another; raw bytes after 101.

The states of a connection, and what bytes from the client mean in each:

    HEAD     part of the next head           -> BODY or WAIT (handler called), REFUSED (bad head)
    BODY     body of the request at hand     -> WAIT when it is complete
    WAIT     the next request, kept unread until the response at hand has ended -> HEAD
    REFUSED  nothing: an error answer is being written -> LINGER
    LINGER   discarded: the client is given time to read the last answer
    CLOSED   nothing; or all is another protocol's (`edged.downstream.raw`, `edged.downstream.h2`)

A client that says it will send no more while its answer is owed is taken for gone, as one that
was killed looks the same.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from edged.chunked import ChunkedDecoder
from edged.downstream.fields import BadMessage, first_defect, parse_head
from edged.downstream.h1_response import H1Exchange
from edged.downstream.h2 import PREFACE_HEAD, H2Connection
from edged.downstream.hub import NEVER, Hub
from edged.downstream.output import HeldOutput
from edged.downstream.raw import RawConnection
from edged.downstream.sockets import client_address, reset
from edged.headers import answer
from edged.messages import RequestHead

_HEAD: Final = 0
_BODY: Final = 1
_WAIT: Final = 2
_REFUSED: Final = 3
_LINGER: Final = 4
_CLOSED: Final = 5


class H1Connection(HeldOutput):
    """One client connection until it closes or turns out to speak HTTP/2.

    Invariants: at most one exchange; ``_buffer`` holds bytes not yet understood, and only in
    states that wait (HEAD: an incomplete head; WAIT: later requests; BODY: paused).
    """

    __slots__ = (
        "_body_paused",
        "_buffer",
        "_decoder",
        "_exchange",
        "_left",
        "_progress",
        "_reading",
        "_scanned",
        "_served",
        "_state",
        "_tunnel",
        "_write_paused",
        "client",
        "deadline",
        "keep_alive",
    )

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._state = _HEAD
        self._buffer = b""
        self._scanned = 0
        self._exchange: H1Exchange | None = None
        self._decoder: ChunkedDecoder | None = None
        self._left = 0
        self._progress = 0
        self._served = False
        self.keep_alive = True
        """Neither the client nor edged has asked for the connection's end."""
        self._body_paused = False
        self._reading = True
        self._write_paused = False
        self._tunnel: RawConnection | None = None
        self.client = ""
        """The client's address and port, as it would stand in a URL."""
        self.deadline = NEVER

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = cast(asyncio.Transport, transport)
        if not self._hub.admit(self):
            self._state = _CLOSED
            self._transport.abort()
            return
        self.client = client_address(self._transport)
        self._transport.set_write_buffer_limits(high=self._hub.limits.write_high_bytes)
        self.deadline = self._hub.now + self._hub.limits.idle_s

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        self._corked = True
        try:
            if self._state == _HEAD:
                data = self._take_head(data)
            if data:
                self._consume(data)
        finally:
            self._corked = False
            if self.held:
                self.flush()

    def eof_received(self) -> bool:
        """The client sends no more. True keeps the connection open for writing."""
        if self._buffer:
            self._continue()
        if self._tunnel is not None:
            return self._tunnel.eof_received()
        self._lose_exchange()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by whomever."""
        self._state = _CLOSED
        self._buffer = b""
        self.held.clear()
        self._hub.leave(self)
        self._lose_exchange()

    def pause_writing(self) -> None:
        """The write buffer is above its high watermark."""
        self._write_paused = True
        self._left_to_write()
        if self._exchange is not None and self._exchange.sink is not None:
            self._exchange.sink.pause_response()

    def resume_writing(self) -> None:
        """It drained."""
        self._write_paused = False
        if self._state == _WAIT:
            self.deadline = NEVER
        elif self._state == _BODY:
            self.open_window()
        if self._exchange is not None and self._exchange.sink is not None:
            self._exchange.sink.resume_response()

    # Reading.

    def _consume(self, data: bytes) -> None:
        while data:
            state = self._state
            if state == _HEAD:
                if self._scanned:
                    break
                data = self._take_head(data)
            elif state == _BODY and not self._body_paused:
                data = self._take_body(data)
            elif state >= _REFUSED:
                if self._tunnel is not None:
                    self._tunnel.data_received(data)
                return
            else:
                break
        self._buffer = data
        if data and self._state != _HEAD:
            self._set_reading()

    def _continue(self) -> None:
        """Take up what was kept, now that it can be understood."""
        data = self._buffer
        if data and self._state != _CLOSED:
            self._buffer = b""
            self.data_received(data)
        self._set_reading()

    def _continue_soon(self) -> None:
        if self._buffer and not self._corked:  # else whoever corked it goes on
            self._hub.loop.call_soon(self._continue)

    def _set_reading(self) -> None:
        ahead = len(self._buffer) > self._hub.limits.read_ahead_bytes and self._state != _HEAD
        wanted = not self._body_paused and not ahead
        if wanted != self._reading and self._state != _CLOSED:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _take_head(self, data: bytes) -> bytes:
        """Take one head from ``data`` and call the handler; what remains.

        With ``_scanned`` set the head is incomplete, and all of ``data`` remains.
        """
        hub = self._hub
        limits = hub.limits
        seen = self._scanned
        while data.startswith(b"\r\n"):  # RFC 9112 section 2.2: empty lines before a request
            data = data[2:]
            seen = 0
        end = data.find(b"\r\n\r\n", seen and max(0, seen - 3), limits.header_bytes + 4)
        if end < 0:
            return self._keep_part(data, seen)
        self._scanned = 0
        try:
            head, keep_alive, plain = parse_head(data[:end], limits)
        except BadMessage as error:
            if data.startswith(PREFACE_HEAD) and not self._served:
                self._become_h2(data)
            else:
                self._refuse(error)
            return b""
        self.keep_alive = keep_alive and not hub.draining
        exchange = self._exchange = H1Exchange(self, head, plain)
        self._served = True
        if head.body_length == 0:
            self._state = _WAIT
            self.deadline = NEVER
        else:
            self._await_body(head, exchange)
        hub.requests_total += 1
        hub.requests_open += 1
        sink = hub.handler(head, exchange)
        if not exchange.done:
            exchange.sink = sink
            if self._write_paused:
                sink.pause_response()
        return data[end + 4 :]

    def _keep_part(self, data: bytes, seen: int) -> bytes:
        """An incomplete head, ``seen`` bytes of which are known to be good so far; it remains."""
        defect = first_defect(data, self._hub.limits, max(0, seen - 2))
        if defect is not None:
            self._refuse(defect)
            return b""
        self._scanned = len(data)
        # The first byte of a head starts its clock; further ones don't move it.
        self.deadline = min(self.deadline, self._hub.now + self._hub.limits.header_time_s)
        return data

    def _await_body(self, head: RequestHead, exchange: H1Exchange) -> None:
        length = head.body_length
        self._state = _BODY
        self._left = length or 0
        self._decoder = ChunkedDecoder(self._hub.limits) if length is None else None
        if head.expects_continue:
            exchange.awaits_continue = True
            exchange.plain = False
        self.open_window()

    def _take_body(self, data: bytes) -> bytes:
        """Hand the body's bytes in ``data`` on; what follows the body."""
        exchange = self._exchange
        decoder = self._decoder
        if decoder is not None:
            body, rest = decoder.feed(data)
            complete = decoder.done
        elif len(data) < self._left:
            body, rest = data, b""
            self._left -= len(data)
            complete = False
        else:
            body, rest = data[: self._left], data[self._left :]
            complete = True
        self._progress += len(body)
        if complete:
            self._state = _WAIT
            self._decoder = None
            self._body_paused = False
            self._left = 0
            self.deadline = NEVER
        if exchange is None:
            if complete:
                self._await_next()
            return rest
        sink = exchange.sink
        if sink is None:
            return rest
        exchange.awaits_continue = False
        if body:
            sink.body(body)
        if complete:
            if not exchange.done:
                sink.body_end(decoder.trailers if decoder is not None else None)
            if not self._reading:
                self._set_reading()
        elif decoder is not None and decoder.failed is not None and not exchange.done:
            self._fail(decoder.failed)
        return rest

    def _become_h2(self, data: bytes) -> None:
        self._state = _CLOSED
        connection = H2Connection(self._hub)
        self._hub.replace(self, connection)
        self._transport.set_protocol(connection)
        connection.adopt(self._transport, data)

    # What the exchange asks for.

    def keep_alive_after(self, exchange: H1Exchange) -> bool:
        """Decide, when the head is written, whether another request may follow.

        Not after a refused CONNECT or Upgrade, as the client may already have sent bytes meant for
        the other protocol; nor when it is open whether it will send the body it announced.
        """
        request = exchange.request
        if request.method == b"CONNECT" or request.upgrade is not None or exchange.awaits_continue:
            self.keep_alive = False
        return self.keep_alive

    def forget_tunnel(self) -> None:
        """The raw connection that took over is closed."""
        self._tunnel = None

    def become_raw(self, exchange: H1Exchange) -> RawConnection:
        """The response head switched protocols: bytes pass unread from here on."""
        if self.held:
            self.flush()
        self._state = _CLOSED
        self._exchange = None
        early, self._buffer = self._buffer, b""
        tunnel = self._tunnel = RawConnection(self._hub, self._transport, exchange, early)
        self._hub.replace(self, tunnel)
        self._transport.set_protocol(tunnel)
        if not self._reading:
            self._transport.resume_reading()
        return tunnel

    def open_window(self) -> None:
        """The client's time for its body, or for more of it, begins."""
        self._progress = 0
        self.deadline = self._hub.now + self._hub.limits.body_stall_s

    def pause_body(self) -> None:
        """Stop reading the body at hand."""
        if self._state == _BODY and not self._body_paused:
            self._body_paused = True
            self._set_reading()

    def resume_body(self) -> None:
        """Read on."""
        if self._body_paused:
            self._body_paused = False
            if self._state == _BODY:
                self.open_window()
            self._continue_soon()
            self._set_reading()

    def response_done(self) -> None:
        """The response has ended: on to the next request, or close."""
        hub = self._hub
        hub.requests_open -= 1
        self._exchange = None
        if self._state == _WAIT and self.keep_alive and not self._buffer:
            self._state = _HEAD
            self.deadline = hub.now + hub.limits.idle_s
        elif self._state == _REFUSED:
            self._linger()
        elif self._state == _BODY:
            self._drop_rest_of_body()
        else:
            self._await_next()
        if self.held and not self._corked:
            self.flush()

    def cut(self, exchange: H1Exchange, *, hard: bool) -> None:
        """Close so that the client can tell that the response is broken."""
        self._hub.requests_open -= 1
        self._exchange = None
        if hard or not exchange.started:
            self._reset()
        else:
            self._close()

    # Ends.

    def _forget(self, exchange: H1Exchange) -> None:
        """The exchange ends without its handler, which is told."""
        sink = exchange.sink
        exchange.over()
        self._exchange = None
        self._hub.requests_open -= 1
        if sink is not None:
            sink.gone()

    def _lose_exchange(self) -> None:
        exchange = self._exchange
        if exchange is not None and not exchange.done:
            self._forget(exchange)

    def _await_next(self) -> None:
        if not self.keep_alive:
            if self._buffer:
                self._linger()
            else:
                self._close()
            return
        self._state = _HEAD
        self.deadline = self._hub.now + self._hub.limits.idle_s
        self._continue_soon()

    def _drop_rest_of_body(self) -> None:
        """The answer came before the body was read: read and drop a short rest, else close."""
        short = self._decoder is None and self._left <= self._hub.limits.discard_bytes
        if not self.keep_alive or not short:
            self._linger()
        else:
            self._body_paused = False
            self._set_reading()
            self._continue_soon()

    def _fail(self, error: BadMessage) -> None:
        """The body at hand is malformed: answer if nothing was answered yet, else cut."""
        exchange = self._exchange
        if exchange is None:
            return
        self._forget(exchange)
        if exchange.started:
            self._hub.requests_bad += 1
            self._reset()
        else:
            self._refuse(error)

    def _refuse(self, error: BadMessage) -> None:
        """Answer with an error and close. The handler isn't asked."""
        hub = self._hub
        hub.requests_bad += 1
        hub.note(error)
        hub.requests_open += 1
        self._state = _REFUSED
        self.keep_alive = False
        self._scanned = 0
        exchange = H1Exchange(self)
        hint = "Send one well-formed HTTP/1.1 request; this connection is closed."
        answer(exchange, hub.refusal(error, hint))

    def _linger(self) -> None:
        """Close after the client had time to read: a close with input unread is a reset."""
        self._end(_LINGER)
        self._decoder = None
        self._body_paused = False
        self._set_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _close(self) -> None:
        self._end(_CLOSED)
        self._transport.close()

    def _end(self, state: int) -> None:
        """No more is understood; what is held leaves, and has some time to arrive."""
        self._state = state
        self._buffer = b""
        self._progress = -1
        self.deadline = self._hub.now + self._hub.limits.linger_s
        if self.held:
            self.flush()

    def _reset(self) -> None:
        self._state = _CLOSED
        self._buffer = b""
        self.held.clear()
        reset(self._transport)

    # The hub's side.

    def _left_to_write(self) -> None:
        self._progress = self._transport.get_write_buffer_size()
        self.deadline = self._hub.now + self._hub.limits.write_stall_s

    def expired(self, now: float) -> None:
        """The time for a head, a body, a write or the last read is over."""
        state = self._state
        queued = self._transport.get_write_buffer_size()
        if state in (_LINGER, _CLOSED) or self._write_paused:
            if queued and queued != self._progress:  # the client still reads, slowly
                self._left_to_write()
            elif state in (_LINGER, _CLOSED):
                self.deadline = NEVER
                self._transport.abort()
            else:
                self.kill()
        elif state == _HEAD:
            if self._buffer:
                self._refuse(BadMessage(408, "header_timeout", "The request header took too long."))
            else:
                self._close()
        elif state == _BODY:
            limits, exchange = self._hub.limits, self._exchange
            duplex = limits.duplex and exchange is not None and exchange.started
            waits = exchange is not None and exchange.awaits_continue
            enough = self._progress >= limits.body_stall_bytes
            if self._body_paused or duplex or waits or enough:
                self.open_window()
            elif exchange is None:
                self._linger()
            else:
                self._fail(BadMessage(408, "body_timeout", "The request body stalled."))

    def drain(self) -> None:
        """Close now if nothing is in flight; else after the response at hand."""
        self.keep_alive = False
        if self._state == _HEAD and not self._buffer:
            self._close()

    def kill(self) -> None:
        """Close at once; what is in flight breaks visibly."""
        self._lose_exchange()
        self._reset()  # also where a close waits for a client to read
