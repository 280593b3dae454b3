"""``edged relay``: run a relay, or check its configuration."""

from __future__ import annotations

import sys

from edged.mistakes import ConfigError
from edged.relay.config import load


def relay(file: str, *, check: bool) -> int:
    """Run until told to stop, or with ``check`` explain every mistake in ``file``."""
    if not check:
        from edged.process import run
        from edged.relay.daemon import RelayDaemon

        return run(file, RelayDaemon)
    try:
        config = load(file)
    except ConfigError as error:
        for mistake in error.mistakes:
            print(mistake)
        count = len(error.mistakes)
        print(f"{file}: {count} mistake{'s' if count > 1 else ''}", file=sys.stderr)
        return 1
    counts = (
        (len(config.clients), "client"),
        (len(config.upstreams), "upstream"),
        (len(config.topology.lines), "line"),
    )
    said = ", ".join(f"{count} {word}{'s' if count != 1 else ''}" for count, word in counts)
    print(f"{file}: good: {said}")
    return 0
