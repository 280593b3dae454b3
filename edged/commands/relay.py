"""``edged relay``: run a relay, or check its configuration."""

from __future__ import annotations

from collections.abc import Sequence

from edged.commands.config import Count, explain
from edged.relay.config import RelayConfig, load


def relay(file: str, *, check: bool) -> int:
    """Run until told to stop, or with ``check`` explain every mistake in ``file``."""
    if not check:
        from edged.process import run
        from edged.relay.daemon import RelayDaemon

        return run(file, RelayDaemon)
    return explain(file, load, _counts)


def _counts(config: RelayConfig) -> Sequence[Count]:
    return (
        (len(config.clients), "client"),
        (len(config.upstreams), "upstream"),
        (len(config.topology.lines), "line"),
    )
