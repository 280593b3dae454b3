"""A chat through a relay over a real line: what it costs as differences, in short.

`bench/conversation.py` has all kinds and lengths, CPU and times.
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from bench.conversation import FAR_RTT_S, HARDLY_A_BODY, KINDS, ask, play, site_of
from tests.netns.lab import LineSpec

pytestmark = pytest.mark.root


def test_a_chat_costs_what_is_new(tmp_path: Path) -> None:
    bodies = KINDS["chinese"]()
    last = bodies[-1]
    with site_of(tmp_path, [LineSpec("far", rtt_s=FAR_RTT_S)], seed=1) as site, site.lab.edge:
        ask(site, "plain", HARDLY_A_BODY, "first")
        ask(site, "differences", HARDLY_A_BODY, "first")
        told = play(site, "differences", bodies, "k")
        plain, zipped = sum(map(len, bodies)), sum(len(gzip.compress(b, 6)) for b in bodies)
        assert plain > 20 * told.leg_bytes
        assert zipped > 6 * told.leg_bytes
        # All packets from the edge, of probes and pulses too.
        assert plain > 20 * told.line_bytes
        assert zipped > 6 * told.line_bytes
        # The plain one needs more round trips than one while its connection has carried little.
        assert ask(site, "plain", last, "cold") - told.first_byte_s > 2 * FAR_RTT_S
        sizes = re.findall(
            r'edged_flow_body_bytes_total\{relay="hk",size="(\w+)"\} (\S+)', site.edged.metrics()
        )
        coded = {size: float(count) for size, count in sizes}
        assert coded["plain"] == plain
        assert coded["coded"] == told.leg_bytes
        relay = site.relay_status()["relay"]
        assert relay["dictionary_bytes"] <= 64 << 20
        assert relay["clients"][0]["dictionaries_missed"] == 0
