"""What attempts need of each path, worked out once and not per request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from edged.headers import proxy_status
from policies.concurrency import Answer
from policies.model import Carrier, Path

if TYPE_CHECKING:
    from typing import Any

    from edged.driver import Driver
    from edged.table import PathTable

_MOST_TARGETS = 8192  # listed paths are few; those of unlisted hosts come and go


_MOST_PLAIN = 256


@dataclass(slots=True)
class EndpointNotes:
    """What exchanges learnt of an endpoint."""

    takes_coding: bool | None = None
    """Whether it took a coded request body: yes, no, or not known yet."""
    plain: set[bytes] = field(default_factory=set)
    """Request paths that refused one, while others take it."""

    def coding_taken(self) -> None:
        """A coded body was answered with success."""
        self.takes_coding = True

    def coding_refused(self, path: bytes) -> None:
        """The coding was to blame: the body was taken as it is, or would have been."""
        if self.takes_coding is True:
            if len(self.plain) >= _MOST_PLAIN:
                self.plain.clear()
            self.plain.add(path)
        else:
            self.takes_coding = False

    def wants_plain(self, path: bytes) -> bool:
        """Whether a coded body would be refused at ``path``."""
        return self.takes_coding is False or path in self.plain


class Tenant(Protocol):
    """An attempt in flight on a path."""

    @property
    def exchange(self) -> Driver[Any]:
        """Whose attempt it is."""

    @property
    def number(self) -> int:
        """Its number there."""

    @property
    def carrier(self) -> Carrier | None:
        """What it runs on; ``None``: it waits for a stream."""


class Target:
    """One path: wire forms of its endpoint, and the attempts in flight on it."""

    __slots__ = (
        "answers",
        "authority",
        "base_path",
        "live",
        "moved_bytes",
        "notes",
        "path",
        "proxy_status",
        "report_at",
        "scheme",
    )

    def __init__(self, path: Path, notes: EndpointNotes) -> None:
        endpoint = path.endpoint
        default_port = 443 if endpoint.scheme == "https" else 80
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        port = "" if endpoint.port == default_port else f":{endpoint.port}"
        self.path = path
        self.notes = notes
        self.scheme = endpoint.scheme.encode()
        self.authority = f"{host}{port}".encode()
        self.base_path = endpoint.base_path.encode()
        status = proxy_status(line=path.line.name, endpoint=endpoint.key)
        self.proxy_status = (b"proxy-status", status)
        """The field (RFC 9209) that names the path a response came by."""
        self.live: dict[Tenant, None] = {}
        self.moved_bytes = 0
        """Body bytes both ways since the last `Targets.take_moved`."""
        self.report_at = 0.0
        """When the next good answer is a sample of its own."""
        self.answers: list[Answer] = []
        """Good answers since the last sample, not yet told to the table."""

    def flush(self, table: PathTable, now: float) -> None:
        """Tell the table what was held back."""
        table.answered(self.path.name, self.answers, now)
        self.answers = []

    def local_location(self, location: bytes, prefix: bytes) -> bytes | None:
        """``location`` (RFC 9110 section 10.2.2) as seen by a gateway client, if it is ours.

        A redirect to the endpoint's own origin must bring the client back through ``prefix``.
        """
        origin = self.scheme + b"://" + self.authority
        if location.startswith(origin):
            location = location[len(origin) :] or b"/"
            if not location.startswith(b"/"):
                return None
        elif not location.startswith(b"/") or location.startswith(b"//"):
            return None
        base = self.base_path
        if base:
            if location != base and not location.startswith(base + b"/"):
                return None
            location = location[len(base) :] or b"/"
        return prefix.rstrip(b"/") + location


class Targets:
    """`Target` by path name, made on demand."""

    __slots__ = ("_find_path", "_lines", "_notes", "_targets")

    def __init__(self, find_path: Callable[[str], Path]) -> None:
        self._find_path = find_path
        self._notes: dict[str, EndpointNotes] = {}
        self._targets: dict[str, Target] = {}
        self._lines: set[str] = set()

    def get(self, name: str) -> Target:
        """The target of path ``name``. Raises `KeyError` if there is no such path."""
        target = self._targets.get(name)
        if target is None:
            if len(self._targets) >= _MOST_TARGETS:
                self._forget_idle()
            target = self._make(name)
        return target

    def live_on(self, name: str) -> tuple[Tenant, ...]:
        """The attempts in flight on path ``name``."""
        target = self._targets.get(name)
        return () if target is None else tuple(target.live)

    def beside(self, name: str) -> list[Target]:
        """Path ``name`` and the others of its line, as far as anything was asked of them."""
        line = self._find_path(name).line.name
        return [target for target in self._targets.values() if target.path.line.name == line]

    def flush(self, table: PathTable, now: float) -> None:
        """Tell the table what was held back on any path."""
        for target in self._targets.values():
            if target.answers:
                target.flush(table, now)

    def take_moved(self) -> dict[str, int]:
        """Body bytes by line name since the last call."""
        moved = dict.fromkeys(self._lines, 0)
        for target in self._targets.values():
            moved[target.path.line.name] += target.moved_bytes
            target.moved_bytes = 0
        return moved

    def refresh(self) -> None:
        """Paths may have changed: make targets anew, keeping who is in flight."""
        for name, old in list(self._targets.items()):
            del self._targets[name]
            if old.live:
                try:
                    self._make(name).live = old.live
                except KeyError:
                    self._targets[name] = old  # removed from the config; those on it finish

    def _make(self, name: str) -> Target:
        path = self._find_path(name)
        notes = self._notes.setdefault(path.endpoint.key, EndpointNotes())
        target = self._targets[name] = Target(path, notes)
        self._lines.add(path.line.name)
        return target

    def _forget_idle(self) -> None:
        self._targets = {name: target for name, target in self._targets.items() if target.live}
        self._notes = {t.path.endpoint.key: t.notes for t in self._targets.values()}
