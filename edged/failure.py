"""How a command fails: with one sentence for people."""

from __future__ import annotations


class Failed(Exception):
    """The command cannot do what it was asked; the text says why and what to do."""

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status
