"""Flows through a relay over real lines: what one of them does is not seen by clients."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest

from tests.netns.relay_site import RelaySite

pytestmark = pytest.mark.root

TOKENS = 80


def used(site: RelaySite) -> str:
    """The line of the exchange in flight."""
    paths = site.edged.status()["upstreams"][0]["paths"]
    return next(path["line"] for path in paths if path["in_flight"])


@pytest.mark.parametrize("seed", [1])
def test_a_token_stream_survives_the_silent_death_of_its_line(tmp_path: Path, seed: int) -> None:
    with RelaySite(tmp_path, seed=seed) as site, site.lab.edge:
        response = site.edged.open(f"/llm/sse?n={TOKENS}&rate=20")
        numbers, times = [], []
        for line in response:
            if line.startswith(b"data"):
                times.append(time.monotonic())
                numbers.append(json.loads(line[5:])["i"])
                if len(numbers) == TOKENS // 3:
                    site.lab.set(used(site), blackhole=True)
        response.leave()
        assert numbers == list(range(TOKENS))
        assert max(b - a for a, b in itertools.pairwise(times)) < 0.7 * 1.5, "busy machines count"


def test_a_body_each_way_survives_the_death_of_a_line(tmp_path: Path) -> None:
    body = bytes(range(256)) * (3 << 12)
    with RelaySite(tmp_path, seed=3) as site, site.lab.edge:
        answer = site.edged.fetch("/llm/upload", "POST", body=body)
        assert answer.json["length"] == len(body)
        response = site.edged.open(f"/llm/bytes/{8 << 20}")
        data = response.read(1 << 20)
        died = used(site)
        site.lab.set(died, blackhole=True)
        data += response.read()
        response.leave()
        assert len(data) == 8 << 20
        site.lab.restore(died)
        assert site.relay_status()["relay"]["clients"][0]["opened"] == 2
