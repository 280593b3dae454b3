"""Name servers that do not answer while what they said before serves: told once, shown till over.

Without this nobody would notice: requests go on. Where nothing is known from before, the request
that fails says so itself.
"""

from __future__ import annotations

import logging

_log = logging.getLogger("edged.resolver")

_Key = tuple[str, str]
"""Line, and the host that alone is concerned; ``""``: whatever the line's servers are asked."""


class Outages:
    """What is going on, by line."""

    def __init__(self) -> None:
        self._reasons: dict[_Key, str] = {}

    def failed(self, line: str, host: str, reason: str, *, answered: bool) -> None:
        """``host`` could not be asked for again, and its old addresses serve.

        ``answered``: the servers are there, and refuse this name only.
        """
        key = (line, host if answered else "")
        if key not in self._reasons:
            served = f"{host} keeps" if answered else "known names keep"
            _log.warning(
                "line %s: %s: %s the addresses known from before, for up to a day",
                line,
                reason,
                served,
            )
        self._reasons[key] = reason

    def answered(self, line: str, host: str, servers: str) -> None:
        """``host`` was answered for."""
        if not self._reasons:
            return
        if self._reasons.pop((line, ""), None) is not None:
            _log.info("line %s: %s answers again", line, servers)
        if self._reasons.pop((line, host), None) is not None:
            _log.info("line %s: %s answers again for %s", line, servers, host)

    def forget(self, line: str, host: str) -> None:
        """Nothing is kept of ``host`` any more."""
        self._reasons.pop((line, host), None)

    def of(self, line: str) -> str | None:
        """What is wrong on ``line``, for people; ``None``: nothing."""
        return next((reason for (name, _), reason in self._reasons.items() if name == line), None)
