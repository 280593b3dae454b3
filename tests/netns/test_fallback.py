"""Carriers on real lines: UDP dies under h3 while TCP goes on."""

import time

import pytest

from tests.netns.lab import LineSpec
from tests.netns.site import CADDY, Site

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not CADDY.exists(), reason="caddy is not installed"),
]
LINES = (LineSpec("a", rtt_s=0.03), LineSpec("b", rtt_s=0.06))


def shoot(site, name):
    """One POST: its carrier, and how long it took."""
    begun = time.monotonic()
    answer = site.edged.fetch("/llm/echo", "POST", body=b"x", headers={"x-lab-id": name})
    took_s = time.monotonic() - begun
    assert answer.status == 200
    return site.edged.why(answer)["request"]["carrier"], took_s


def test_tcp_takes_over_within_a_second_when_datagrams_stop(tmp_path):
    with Site(tmp_path, lines=LINES, protocols=("h3", "h2"), caddy=True) as site, site.lab.edge:
        for number in range(15):
            carrier, _ = shoot(site, f"before{number}")
            time.sleep(0.1)
        assert carrier == "h3"
        for line in "ab":
            site.lab.set(line, udp_blocked=True)
        shots = [shoot(site, f"after{number}") for number in range(20)]
        assert [carrier for carrier, _ in shots[1:]] == ["h2"] * 19
        # A machine that is busy with other things adds to it: the bar itself is bench/wan.py's.
        assert max(took_s for _, took_s in shots) < 2
        assert "h3 blocked" in (tmp_path / "edged.log").read_text()


def test_an_endpoint_of_h3_alone_is_reached_over_the_line_that_lets_datagrams_pass(tmp_path):
    with Site(tmp_path, lines=LINES, protocols=("h3",), caddy=True) as site, site.lab.edge:
        for number in range(15):
            shoot(site, f"before{number}")
            time.sleep(0.1)
        site.lab.set("a", udp_blocked=True)
        shots = [shoot(site, f"after{number}") for number in range(8)]
        assert {carrier for carrier, _ in shots} == {"h3"}
        assert max(took_s for _, took_s in shots) < 4
