"""Where commands print tables."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console

_PIPE_COLUMNS = 200


class _Plain(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Whoever read stopped: `edged.cli` ends the command, as for any other output."""
        raise BrokenPipeError


def console() -> Console:
    """Standard output. Names may look like markup, and a pipe must not cut lines at 80 columns."""
    made = _Plain(markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = _PIPE_COLUMNS
    return made
