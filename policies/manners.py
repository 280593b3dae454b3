"""How often a server may be sent HTTP/2 PINGs: some end the connection of those who send many.

gRPC's servers bear two PINGs beside an unanswered request in five minutes; the third ends the
connection, and every exchange on it. Most others bear any number. Nothing in the protocol says
which it is, so it is tried out where it costs nothing: on a connection without exchanges.

| state | what may be asked | event | to |
| --- | --- | --- | --- |
| unknown | idle connections only | 6 PINGs in a row answered | tolerant |
| unknown | | the connection ended meanwhile, or ENHANCE_YOUR_CALM | averse |
| tolerant | any connection | ENHANCE_YOUR_CALM (RFC 9113, 7) | averse |
| averse | none | 10 min are over (doubling to a day) | unknown |

Where PINGs may not speak, TCP's own acknowledgements, connects and ICMP do. QUIC's PINGs are the
transport's affair and are not limited. Pure: time is an argument.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

TRIAL: Final = 6
"""Twice what a gRPC server bears."""
TRIAL_S: Final = 5.0
"""PINGs further apart are not in a row."""
AVERSE_S: Final = 600.0
AVERSE_MOST_S: Final = 86_400.0


class Patience(enum.Enum):
    """What a server may be sent now."""

    ANY = "any"
    IDLE = "idle"
    NONE = "none"


@dataclass(slots=True)
class _Server:
    answered: int = 0
    answered_at: float = float("-inf")
    tolerant: bool = False
    averse_until: float = float("-inf")
    averse_s: float = 0.0


class Manners:
    """What is known of each server, by any key. One object a daemon."""

    def __init__(self) -> None:
        self._servers: dict[str, _Server] = {}

    def patience(self, key: str, now: float) -> Patience:
        """What the server may be sent now."""
        server = self._servers.get(key)
        if server is None:
            return Patience.IDLE
        if now < server.averse_until:
            return Patience.NONE
        return Patience.ANY if server.tolerant else Patience.IDLE

    def answered(self, key: str, now: float) -> None:
        """A PING on an idle connection was answered."""
        server = self._servers.setdefault(key, _Server())
        in_row = now - server.answered_at <= TRIAL_S
        server.answered = server.answered + 1 if in_row else 1
        server.answered_at = now
        if server.answered >= TRIAL:
            server.tolerant = True

    def ended(self, key: str, now: float) -> None:
        """The connection that was asked ended before it answered: while nothing is known of the
        server, that is taken for its patience's end."""
        server = self._servers.get(key)
        if server is not None and server.answered and not server.tolerant:
            self.calmed(key, now)

    def calmed(self, key: str, now: float) -> None:
        """The server said ENHANCE_YOUR_CALM."""
        server = self._servers.setdefault(key, _Server())
        server.averse_s = min(max(2 * server.averse_s, AVERSE_S), AVERSE_MOST_S)
        server.averse_until = now + server.averse_s
        server.tolerant = False
        server.answered = 0

    def retain(self, keys: frozenset[str]) -> None:
        """Forget all others."""
        self._servers = {key: it for key, it in self._servers.items() if key in keys}
