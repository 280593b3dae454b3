"""Rows 1 to 3: a line dies silently under steady traffic, under hardly any, and under a stream."""

import pytest

from bench.wan_rows import DEAD, Event
from bench.wan_traffic import Steady, Stream
from tests.netns.rows import play, play_together, short
from tests.netns.site import CADDY

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
