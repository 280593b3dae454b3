"""``edged check`` and ``edged schema``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path as File
from typing import Any, TypeVar

from pydantic import BaseModel

from edged.binding import families, family_of
from edged.config import Config, ConfigError, load
from edged.config_file import ConfigFile
from edged.config_policies import PolicyFile
from edged.failure import Failed
from edged.relay.config_file import RelayFile
from edged.resolver import literal
from edged.yaml_positions import parse

Read = TypeVar("Read")
Count = tuple[int, str]
"""How many, and of what, in the singular."""


def check(file: str) -> int:
    """Print every mistake (status 1), or what the configuration amounts to."""
    if _is_of_relay(file):
        raise Failed(f"{file} is a relay's configuration: edged relay --check -c {file}")
    return explain(file, load, _counts, _notes)


def _notes(config: Config) -> Iterator[str]:
    """What is no mistake and works less well than it seems: paths that cannot work."""
    for path in config.topology.paths():
        endpoint = path.endpoint
        for address in literal(endpoint.address or endpoint.host):
            if family_of(address) not in families(path.line):
                yield (
                    f"line {path.line.name} cannot reach {endpoint.key} at {address} from "
                    f"{path.line.source}: name the others in the endpoint's `lines`"
                )


def _is_of_relay(file: str) -> bool:
    """Whether ``file`` has sections that only a relay's configuration has, and none of an edge's
    own."""
    try:
        data = parse(File(file), File(file).read_bytes()).data
    except OSError:
        return False
    keys = set(data) if isinstance(data, dict) else set()
    ours, theirs = set(ConfigFile.model_fields), set(RelayFile.model_fields)
    return bool(keys & (theirs - ours)) and not keys & (ours - theirs)


def _counts(config: Config) -> Sequence[Count]:
    topology = config.topology
    return (
        (len(topology.lines), "line"),
        (len(config.upstreams), "upstream"),
        (len(topology.endpoints), "endpoint"),
        (len(topology.paths()) + len(topology.relayed()), "path"),
    )


def explain(
    file: str,
    read: Callable[[str], Read],
    counts: Callable[[Read], Sequence[Count]],
    notes: Callable[[Read], Iterable[str]] = lambda _: (),
) -> int:
    """`check` of a file that ``read`` takes, or raises `ConfigError`; what it has how many of, and
    what else is to be said."""
    try:
        config = read(file)
    except ConfigError as error:
        for mistake in error.mistakes:
            print(mistake)
        count = len(error.mistakes)
        print(f"{file}: {count} mistake{'s' if count > 1 else ''}", file=sys.stderr)
        return 1
    said = ", ".join(f"{n} {word}{'s' if n != 1 else ''}" for n, word in counts(config))
    print(f"{file}: good: {said}")
    for note in notes(config):
        print(f"{file}: note: {note}")
    return 0


def schema(of: str) -> int:
    """Print the JSON Schema (draft 2020-12) of ``config``, ``relay`` or ``policy``."""
    models: dict[str, type[BaseModel]] = {"policy": PolicyFile, "relay": RelayFile}
    model = models.get(of, ConfigFile)
    data: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    data |= model.model_json_schema()
    print(json.dumps(data, indent=2, ensure_ascii=False))
    return 0
