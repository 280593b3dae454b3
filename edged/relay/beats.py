"""The lines of a pulse: JSON objects, one a line, both ways; what is not said has not changed.

The client's, for example: ``{"n":7,"every":0.05,"ack":{"<id>":1048576},"done":["<id>"]}``

n       its number; the relay names the last one it saw, so that the client can tell the round trip
every   seconds between the relay's lines from now on
ack     response bytes that will never be asked for again, by flow
done    flows of which the client has all it wants, the end included: they are forgotten
want    URLs of origins; their far legs are reported when they change

The relay's: ``{"n":9,"seen":7,"held":0.012,"up":{"<id>":65536}}``

n       its number
seen    number of the client's last line, and ``held``: seconds since that came
up      request bytes taken, by flow
gone    flows named in ``ack`` that do not exist
load    ``{"flows":2,"journal":4096,"lag_ms":0.3,"draining":false}``
far     ``{"https://api.example.com":[{"endpoint":"us","verdict":"up","rtt_ms":9.1,...}]}``
relay   a word that is another one after each start of the relay; in its first line
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LINE_BYTES = 64 << 10
"""A longer line is refused."""
MOST_WANTED = 64


class BadBeat(Exception):
    """A line that is no beat."""


class ClientBeat(NamedTuple):
    """A line of the client's."""

    number: int
    every_s: float | None = None
    acks: Mapping[bytes, int] = {}
    done: Sequence[bytes] = ()
    want: Sequence[str] | None = None

    def encode(self) -> bytes:
        """As a line."""
        said: dict[str, Any] = {"n": self.number}
        if self.every_s is not None:
            said["every"] = self.every_s
        if self.acks:
            said["ack"] = {flow.hex(): offset for flow, offset in self.acks.items()}
        if self.done:
            said["done"] = [flow.hex() for flow in self.done]
        if self.want is not None:
            said["want"] = list(self.want)
        return _line(said)

    @classmethod
    def decode(cls, line: bytes) -> ClientBeat:
        """Raises `BadBeat`."""
        said = _object(line)
        every, want = said.get("every"), said.get("want")
        if every is not None and (not _is_number(every) or every <= 0):
            raise BadBeat("every is no number of seconds")
        if want is not None and not (
            isinstance(want, list)
            and len(want) <= MOST_WANTED
            and all(isinstance(url, str) and len(url) < 300 for url in want)
        ):
            raise BadBeat("want is no list of URLs")
        return cls(
            _count(said, "n"),
            None if every is None else float(every),
            _offsets(said, "ack"),
            _ids(said, "done"),
            want,
        )


class RelayBeat(NamedTuple):
    """A line of the relay's."""

    number: int
    seen: int = 0
    held_s: float = 0.0
    uploads: Mapping[bytes, int] = {}
    gone: Sequence[bytes] = ()
    load: Mapping[str, float] | None = None
    far: Mapping[str, Sequence[Mapping[str, Any]]] | None = None
    relay: str | None = None

    def encode(self) -> bytes:
        """As a line."""
        said: dict[str, Any] = {"n": self.number, "seen": self.seen}
        said["held"] = round(self.held_s, 6)
        if self.uploads:
            said["up"] = {flow.hex(): offset for flow, offset in self.uploads.items()}
        if self.gone:
            said["gone"] = [flow.hex() for flow in self.gone]
        for key, value in (("load", self.load), ("far", self.far), ("relay", self.relay)):
            if value is not None:
                said[key] = value
        return _line(said)

    @classmethod
    def decode(cls, line: bytes) -> RelayBeat:
        """Raises `BadBeat`."""
        said = _object(line)
        held, load, far = said.get("held", 0.0), said.get("load"), said.get("far")
        if not _is_number(held):
            raise BadBeat("held is no number of seconds")
        for value in (load, far):
            if value is not None and not isinstance(value, dict):
                raise BadBeat("load and far are objects")
        relay = said.get("relay")
        if relay is not None and not isinstance(relay, str):
            raise BadBeat("relay is a word")
        return cls(
            _count(said, "n"),
            _count(said, "seen"),
            float(held),
            _offsets(said, "up"),
            _ids(said, "gone"),
            load,
            far,
            relay,
        )


class Lines:
    """Cuts bytes into lines as they come."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends. Raises `BadBeat`."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES or any(len(line) > LINE_BYTES for line in lines):
            raise BadBeat(f"a line of more than {LINE_BYTES} bytes")
        return [line for line in lines if line.strip()]


def _line(said: dict[str, Any]) -> bytes:
    return json.dumps(said, separators=(",", ":")).encode() + b"\n"


def _object(line: bytes) -> dict[str, Any]:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        raise BadBeat("not JSON") from None
    if not isinstance(said, dict):
        raise BadBeat("not a JSON object")
    return said


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _count(said: dict[str, Any], key: str) -> int:
    value = said.get(key, 0)
    if not _is_count(value):
        raise BadBeat(f"{key} is no number")
    return int(value)


def _id(text: object) -> bytes:
    if isinstance(text, str) and len(text) == 32:
        try:
            return bytes.fromhex(text)
        except ValueError:
            pass
    raise BadBeat("not a flow's id")


def _ids(said: dict[str, Any], key: str) -> tuple[bytes, ...]:
    value = said.get(key, [])
    if not isinstance(value, list):
        raise BadBeat(f"{key} is no list")
    return tuple(_id(text) for text in value)


def _offsets(said: dict[str, Any], key: str) -> dict[bytes, int]:
    value = said.get(key, {})
    if not isinstance(value, dict) or not all(_is_count(offset) for offset in value.values()):
        raise BadBeat(f"{key} is no object of offsets")
    return {_id(text): offset for text, offset in value.items()}
