"""Reads the response of one HTTP/1.1 exchange (RFC 9112 sections 4 to 7): bytes in, events out.

What ends a response: its length, its last chunk, or, without either, an orderly close. llhttp
refuses what is ambiguous (both Content-Length and Transfer-Encoding, several lengths, bare CR or
LF, folded fields, NUL); a transfer coding other than ``chunked`` is refused here.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

import httptools

from edged.messages import Headers, ResponseHead
from edged.upstream.base import StreamEvents

HEAD_BYTES_MAX = 1 << 18
_SPECIAL = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
        b"alt-svc",
    )
)
_KNOWN_OPTIONS = frozenset((b"close", b"keep-alive", b"upgrade"))


class Progress(enum.Enum):
    """What `ResponseReader.feed` came to."""

    MORE = "more"
    COMPLETE = "complete"
    SWITCHED = "switched"
    """101: ``rest`` and all that follows are raw bytes."""
    BROKEN = "broken"
    """``fault`` says why. Nothing may be read from the connection any more."""


class ResponseReader:
    """The response side of one connection, used again by `begin` for each exchange."""

    __slots__ = (
        "_alt_svc",
        "_complete",
        "_events",
        "_head_bytes",
        "_head_request",
        "_headers",
        "_interim",
        "_on_alt_svc",
        "_parser",
        "_reason",
        "_special",
        "_upgrade",
        "fault",
        "head_done",
        "keep_alive",
        "rest",
        "surplus",
        "trailers",
        "until_close",
    )

    def __init__(self, on_alt_svc: Callable[[bytes], None]) -> None:
        self._on_alt_svc = on_alt_svc
        self._alt_svc = b""
        self._parser = httptools.HttpResponseParser(self)
        self.rest = b""
        self.begin(None, head_request=False, upgrade=False)

    def begin(self, events: StreamEvents | None, *, head_request: bool, upgrade: bool) -> None:
        """Expect the response to a request that was HEAD, or asked for another protocol."""
        self._events = events
        self._head_request = head_request
        self._upgrade = upgrade
        self._headers: Headers = []
        self._special: Headers = []
        self._reason = b""
        self._head_bytes = 0
        self._interim = False
        self._complete = False
        self.fault = ""
        self.trailers: Headers = []
        self.head_done = False
        """The final head was handed over."""
        self.until_close = False
        """Only the end of the connection ends the body."""
        self.keep_alive = True
        """The peer lets the connection serve again."""
        self.surplus = False
        """Bytes came after the response: they belong to no request."""

    def stop(self) -> None:
        """Tell the events object nothing any more."""
        self._events = None

    def feed(self, data: bytes) -> Progress:
        """Parse ``data``; events are called inside. Raises only what an events object raised."""
        if not self.head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as switch:
            self.rest = data[switch.args[0] :]
            return Progress.BROKEN if self.fault else Progress.SWITCHED
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except httptools.HttpParserError as error:
            if not self._complete:
                self.fault = self.fault or f"malformed response: {error}"
                return Progress.BROKEN
            self.surplus = True
        if self._complete:
            if self._head_request and not data.endswith(b"\r\n\r\n"):
                self.surplus = True
            return Progress.COMPLETE
        if not self.fault:
            if self.head_done or self._head_bytes <= HEAD_BYTES_MAX:
                return Progress.MORE
            self.fault = "response head too large"
        return Progress.BROKEN

    # What the parser calls

    def on_message_begin(self) -> None:
        """A head begins: after an interim response, or, as surplus, after the complete one."""
        if self._complete:
            self.surplus = True
        elif self._interim:
            self._interim = False
            self._headers = []
            self._special = []

    def on_status(self, reason: bytes) -> None:
        """The reason phrase."""
        self._reason = reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field line of the head or of the trailers."""
        name = name.lower()
        value = value.rstrip()
        if self.head_done:
            if name not in _SPECIAL:
                self.trailers.append((name, value))
            return
        if name in _SPECIAL:
            self._special.append((name, value))
            if name != b"alt-svc":
                return
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Decide the framing and hand the head over."""
        events = self._events
        if events is None or self._complete:
            return
        status = self._parser.get_status_code()
        version = self._parser.get_http_version().encode()
        coding, declared, switched = self._read_special(version)
        if 100 <= status < 200 and status != 101:
            self._interim = True
            events.informational(status, self._headers)
            return
        self.head_done = True
        if status == 101:
            if not self._upgrade or switched is None:
                self.fault = "101 without being asked to switch protocols"
                return
            self._headers.append((b"upgrade", switched))
        length: int | None
        if self._head_request or status in (101, 204, 304):
            length = 0
        elif coding is not None:
            if coding != b"chunked" or version == b"1.0":
                self.fault = "a transfer coding other than chunked"
                return
            length = None
        else:
            length = declared
            self.until_close = declared is None
        if self._head_request:
            # The parser would wait for the body that the length announces.
            self._complete = True
            self._parser = httptools.HttpResponseParser(self)
        events.head(
            ResponseHead(
                status,
                self._headers,
                length,
                reason=self._reason,
                version=version,
                declared_length=declared if length == 0 else None,
            )
        )

    def on_body(self, body: bytes) -> None:
        """Body bytes, transfer coding removed."""
        if self._complete:
            self.surplus = True
        elif self._events is not None and not self.fault:
            self._events.data(body)

    def on_message_complete(self) -> None:
        """The message (an interim response included) is complete."""
        if self.head_done and not self.fault:
            self._complete = True

    def _read_special(self, version: bytes) -> tuple[bytes | None, int | None, bytes | None]:
        """Transfer-Encoding, Content-Length and Upgrade; obeys Connection (RFC 9110 7.6.1)."""
        coding: bytes | None = None
        declared: int | None = None
        switched: bytes | None = None
        keep_alive = version == b"1.1"
        for name, value in self._special:
            if name == b"content-length":
                declared = int(value)
            elif name == b"transfer-encoding":
                coding = value.lower() if coding is None else coding + b"," + value
            elif name == b"upgrade":
                switched = value
            elif name == b"connection":
                if value == b"keep-alive":
                    keep_alive = True  # the common case, spared the set
                    continue
                options = {option.strip() for option in value.lower().split(b",")}
                if b"close" in options:
                    keep_alive = False
                elif b"keep-alive" in options:
                    keep_alive = True
                if extra := options - _KNOWN_OPTIONS:
                    self._headers = [field for field in self._headers if field[0] not in extra]
            elif name == b"alt-svc" and value != self._alt_svc:
                self._alt_svc = value
                self._on_alt_svc(value)
        self.keep_alive = keep_alive
        return coding, declared, switched
