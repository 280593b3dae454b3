"""Rows 1 to 3: a line dies silently under steady traffic, under hardly any, and under a stream."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.wan_rows import DEAD, Event
from bench.wan_traffic import Steady, Stream
from tests.netns.rows import play, play_together, short
from tests.netns.site import CADDY, Site

pytestmark = pytest.mark.root


def test_row_1_nobody_notices(tmp_path):
    play(short("1"), tmp_path)


def test_row_2_the_first_request_after_it(tmp_path):
    # One in 2 s; the third is due at 4 s.
    seldom = (Steady("r", rate=0.5, count=4),)
    long_ago = Event(2.2, "a", DEAD, spread_s=0.7)
    just_now = Event(3.1, "a", DEAD, spread_s=0.8)
    rows = [
        short("2a", flows=seldom, events=(long_ago,)),
        short("2b", flows=seldom, events=(just_now,)),
    ]
    play_together(rows, tmp_path)


@pytest.mark.skipif(not CADDY.exists(), reason="caddy is not installed")
def test_row_3_a_stream_goes_on(tmp_path):
    flows = (Steady("w", rate=1, count=2), Stream("s", start_s=2.0, tokens=100))
    play(short("3", flows=flows, events=(Event(3.5, "a", DEAD, spread_s=1.5),)), tmp_path)


def test_an_answer_whose_head_had_come_is_asked_for_again(tmp_path):
    """Its body was lost with the line; nothing of it was passed on."""
    upstreams = {carrier: {"protocols": (carrier,)} for carrier in ("h1", "h2")}
    with Site(tmp_path, seed=1, upstreams=upstreams) as site, site.lab.edge:
        for carrier in upstreams:
            for _ in range(3):
                assert site.edged.fetch(f"/{carrier}/echo").headers["x-lab-client"]
        with ThreadPoolExecutor() as pool:
            site.lab.set("a", "down", mtu_bytes=400)  # heads are shorter, bodies are not
            asked = [
                pool.submit(site.edged.fetch, f"/{carrier}/bytes/4000") for carrier in upstreams
            ]
            time.sleep(0.12)  # two round trips
            site.lab.set("a", **DEAD)
            answers = [answer.result() for answer in asked]
        assert [(a.status, len(a.body)) for a in answers] == [(200, 4000)] * 2
        assert [answer.headers["x-lab-client"] for answer in answers] == [site.lab.source("b")] * 2
