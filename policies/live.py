"""One live attempt of an exchange, as `policies.attempts` keeps it."""

from __future__ import annotations


class LiveAttempt:
    """Pending until ``sent_at`` is known."""

    __slots__ = ("answering", "number", "path", "pending_at", "sent_at")

    def __init__(self, number: int, path: str, pending_at: float) -> None:
        self.answering = False
        """Its response has begun, and nothing of it was passed on."""
        self.number = number
        self.path = path
        self.pending_at = pending_at
        self.sent_at: float | None = None
        """When its request was handed to a connection."""

    def company_at(self, race_delay_s: float | None, hedge_delay_s: float | None) -> float | None:
        """When it gets a second attempt beside it; `None`: never."""
        if self.sent_at is None:
            return None if race_delay_s is None else self.pending_at + race_delay_s
        if hedge_delay_s is None or self.answering:
            return None
        return self.sent_at + hedge_delay_s
