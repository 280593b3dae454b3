"""Frames that cost a client nothing and a server much (CVE-2023-44487 and its relatives)."""

from __future__ import annotations

from edged.downstream.hub import Hub

_BURST_S = 10.0


class Floods:
    """Counts one connection's cheap frames over windows of ten seconds or more."""

    __slots__ = ("_control", "_hub", "_resets", "_since")

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._control = 0
        self._resets = 0
        self._since = hub.now

    def reset(self) -> bool:
        """A client reset a stream: whether that was one too many."""
        self._resets += 1
        return self._resets > self._hub.limits.h2_resets_per_s * _BURST_S and not self._lapsed()

    def control(self) -> bool:
        """PING, SETTINGS, PRIORITY, an unknown or empty frame: whether it was one too many."""
        self._control += 1
        return self._control > self._hub.limits.h2_control_per_s * _BURST_S and not self._lapsed()

    def _lapsed(self) -> bool:
        """Whether what was counted came over so long a time that it is no flood."""
        now = self._hub.now
        if now - self._since < _BURST_S:
            return False
        self._since = now
        self._control = self._resets = 0
        return True
