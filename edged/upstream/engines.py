"""Which HTTP/2 and QUIC engines serve, and the HTTP/2 ones, whose differences end here.

With the extra ``[fast]`` installed `jh2` and `qh3` serve, else `h2` and `aioquic`.
``EDGED_ENGINES=pure|fast`` or the ``name`` argument forces one of them. QUIC engines: the
`quic_engines` of this package and of `edged.downstream`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any, Protocol

from edged.messages import Headers

PURE = "pure"
FAST = "fast"
ENVIRONMENT = "EDGED_ENGINES"
HPACK_TABLE_MAX_BYTES = 1 << 16
"""Of a peer that allows more, this much is used."""
_UNLIMITED = 2**31 - 1
_WALK_STREAMS = 64
_FRAME_BYTES = 16384


class EngineError(Exception):
    """The engine asked for by name is unknown or not installed; the text says what to do."""


@dataclass(frozen=True, slots=True)
class H2Engine:
    """One implementation of HTTP/2. Both have the same API, so the members are typed ``Any``."""

    name: str
    events: ModuleType
    ErrorCodes: Any
    ProtocolError: type[Exception]
    """Base of all that the engine raises when the peer, or its user, breaks the protocol."""
    server: Callable[..., Any]
    """``server(stream_window, streams, header_bytes)``: a server side `H2Connection`. It announces
    ``streams`` but leaves refusing further ones to its user: the engines would end the connection
    where RFC 9113 section 5.1.2 asks for a stream error."""


class HpackError(Exception):
    """A header block that cannot be decoded (RFC 7541)."""


class HpackOversizedError(HpackError):
    """A header list larger than the limit: decoding stopped."""


class HpackEncoder(Protocol):
    """One direction's compression context."""

    def __call__(self, fields: Headers) -> bytes:
        """The header block of ``fields``."""

    def resize(self, table_bytes: int) -> None:
        """The peer allows a dynamic table of this size."""


@dataclass(frozen=True, slots=True)
class HpackEngine:
    """Header compression for `edged.upstream.h2_wire`."""

    name: str
    encoder: Callable[[], HpackEncoder]
    decoder: Callable[[int], Callable[[bytes], Headers]]
    """``decoder(list_bytes)`` makes a function from header blocks to fields, which raises
    `HpackError`, and `HpackOversizedError` for a list of more than ``list_bytes``."""


def chosen(name: str | None = None) -> str:
    """``pure`` or ``fast``: what serves, by argument, environment, or what is installed.

    Raises `EngineError` for an unknown name or when ``fast`` is asked for and not installed.
    """
    wanted = name or os.environ.get(ENVIRONMENT) or ""
    if wanted not in ("", PURE, FAST):
        raise EngineError(f"{ENVIRONMENT} is {wanted!r}; allowed: {PURE}, {FAST}")
    if wanted == PURE:
        return PURE
    if all(importlib.util.find_spec(module) for module in ("jh2", "qh3")):
        return FAST
    if wanted == FAST:
        raise EngineError('the fast engines are not installed: pip install "edged[fast]"')
    return PURE


def h2_engine(name: str | None = None) -> H2Engine:
    """The HTTP/2 engine that serves. Raises `EngineError`."""
    return _load_h2(chosen(name))


def hpack_engine(name: str | None = None) -> HpackEngine:
    """The HPACK engine that serves. Raises `EngineError`."""
    return _load_hpack(chosen(name))


def _no_length(headers: Any) -> None:
    """In place of an engine's own tracking of Content-Length."""


@cache
def _load_h2(name: str) -> H2Engine:
    root = "jh2" if name == FAST else "h2"
    connection, config, events, errors, settings, exceptions = (
        importlib.import_module(f"{root}.{part}")
        for part in ("connection", "config", "events", "errors", "settings", "exceptions")
    )
    return H2Engine(
        name=name,
        events=events,
        ErrorCodes=errors.ErrorCodes,
        ProtocolError=exceptions.H2Error,
        server=partial(_h2_server, _draining(connection, events), config, settings),
    )


def _draining(connection: ModuleType, events: ModuleType) -> Any:
    """The engine's connection class with what both engines get wrong put right."""

    class DrainingConnection(connection.H2Connection):  # type: ignore[misc,name-defined]  # base known at run time only
        """Goes on with the streams a GOAWAY leaves alive (RFC 9113 section 6.8).

        Both engines close their state machine on GOAWAY, so that the next frame of a stream in
        flight is a protocol error, and drop what waits to be sent.
        """

        def _receive_goaway_frame(self, frame: Any) -> tuple[list[Any], list[Any]]:
            event = events.ConnectionTerminated.__new__(events.ConnectionTerminated)
            event.error_code = frame.error_code
            event.last_stream_id = frame.last_stream_id
            event.additional_data = frame.additional_data or None
            return [], [event]

        _walk_at = _WALK_STREAMS

        def _open_streams(self, remainder: int) -> int:
            # The engines walk over all streams at each new one, to count them and to forget those
            # that are closed. The count is nobody's here; forgetting can wait until it pays.
            if len(self.streams) < self._walk_at:
                return 0
            count: int = super()._open_streams(remainder)
            self._walk_at = 2 * len(self.streams) + _WALK_STREAMS
            return count

        def _begin_new_stream(self, stream_id: int, allowed_ids: Any) -> Any:
            # The engines make a wrong Content-Length an error of the connection; it is one of the
            # stream (section 8.1.1), and both sides of edged look for it themselves.
            stream = super()._begin_new_stream(stream_id, allowed_ids)
            stream._initialize_content_length = _no_length
            return stream

    return DrainingConnection


def _h2_server(
    connection: Any,
    config: ModuleType,
    settings: ModuleType,
    stream_window: int,
    streams: int,
    header_bytes: int,
) -> Any:
    """`H2Engine.server`."""
    h2 = connection(
        config.H2Configuration(
            client_side=False,
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
            normalize_inbound_headers=False,
        )
    )
    codes = settings.SettingCodes
    values = {
        codes.HEADER_TABLE_SIZE: 4096,
        codes.INITIAL_WINDOW_SIZE: stream_window,
        codes.MAX_CONCURRENT_STREAMS: streams,
        codes.MAX_FRAME_SIZE: _FRAME_BYTES,
        codes.MAX_HEADER_LIST_SIZE: header_bytes,
    }
    h2.local_settings = settings.Settings(client=False, initial_values=values)
    h2.max_inbound_frame_size = _FRAME_BYTES
    h2.decoder.max_header_list_size = header_bytes
    h2.initiate_connection()
    values[codes.MAX_CONCURRENT_STREAMS] = _UNLIMITED
    h2.local_settings = settings.Settings(client=False, initial_values=values)
    # jh2 takes what a browser sends for what a client is without its word, and would send 6 MiB to
    # one that says nothing.
    defaults = {
        codes.HEADER_TABLE_SIZE: 4096,
        codes.INITIAL_WINDOW_SIZE: 65535,
        codes.MAX_FRAME_SIZE: 16384,
    }
    h2.remote_settings = settings.Settings(client=True, initial_values=defaults)
    return h2


@cache
def _load_hpack(name: str) -> HpackEngine:
    fast = name == FAST
    module = importlib.import_module("jh2._hazmat" if fast else "hpack")

    class Encoder:
        def __init__(self) -> None:
            self._encoder = module.Encoder()

        def __call__(self, fields: Headers) -> bytes:
            given = [(name, value, False) for name, value in fields] if fast else fields
            block: bytes = self._encoder.encode(given)
            return block

        def resize(self, table_bytes: int) -> None:
            self._encoder.header_table_size = min(table_bytes, HPACK_TABLE_MAX_BYTES)

    def decoder(list_bytes: int) -> Callable[[bytes], Headers]:
        decoder = module.Decoder()
        decoder.max_header_list_size = list_bytes

        def decode(block: bytes) -> Headers:
            try:
                return [(field[0], field[1]) for field in decoder.decode(block, raw=True)]
            except module.OversizedHeaderListError as error:
                raise HpackOversizedError(str(error)) from None
            except module.HPACKError as error:
                raise HpackError(str(error)) from None
            except BaseException as error:
                # A panic of the Rust core is no `Exception`; a bad block is all it can mean here.
                if type(error).__name__ == "PanicException":
                    raise HpackError("the decoder panicked") from None
                raise

        return decode

    return HpackEngine(name, Encoder, decoder)
