"""``edged check`` and ``edged schema``."""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import BaseModel

from edged.config import ConfigError, load
from edged.config_file import ConfigFile
from edged.config_policies import PolicyFile
from edged.relay.config_file import RelayFile


def check(file: str) -> int:
    """Print every mistake (status 1), or what the configuration amounts to."""
    try:
        config = load(file)
    except ConfigError as error:
        for mistake in error.mistakes:
            print(mistake)
        count = len(error.mistakes)
        print(f"{file}: {count} mistake{'s' if count > 1 else ''}", file=sys.stderr)
        return 1
    topology = config.topology
    counts = (
        (len(topology.lines), "line"),
        (len(config.upstreams), "upstream"),
        (len(topology.endpoints), "endpoint"),
        (len(topology.paths()) + len(topology.relayed()), "path"),
    )
    said = ", ".join(f"{count} {word}{'s' if count != 1 else ''}" for count, word in counts)
    print(f"{file}: good: {said}")
    return 0


def schema(of: str) -> int:
    """Print the JSON Schema (draft 2020-12) of ``config``, ``relay`` or ``policy``."""
    models: dict[str, type[BaseModel]] = {"policy": PolicyFile, "relay": RelayFile}
    model = models.get(of, ConfigFile)
    data: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    data |= model.model_json_schema()
    print(json.dumps(data, indent=2, ensure_ascii=False))
    return 0
