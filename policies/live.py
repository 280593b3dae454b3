"""One live attempt of an exchange, as `policies.attempts` keeps it."""

from __future__ import annotations


class LiveAttempt:
    """Pending until ``sent_at`` is known."""

    __slots__ = ("answering", "lost_at", "number", "path", "pending_at", "sent_at")

    def __init__(self, number: int, path: str, pending_at: float) -> None:
        self.answering = False
        """Its response has begun, and nothing of it was passed on."""
        self.number = number
        self.path = path
        self.pending_at = pending_at
        self.sent_at: float | None = None
        """When its request was handed to a connection."""
        self.lost_at: float | None = None
        """Since when nothing passes on the path that it was sent on."""

    def lost(self, since: float) -> None:
        """Nothing passes on its path since then; it is over, or goes on over another."""
        if self.lost_at is None and self.sent_at is not None:
            self.lost_at = max(since, self.sent_at)
