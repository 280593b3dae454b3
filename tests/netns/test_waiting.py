"""Rows 10 and 11: a model that thinks, and what probes cost."""

from dataclasses import replace

import pytest

from bench.wan_rows import thinking
from bench.wan_traffic import Steady
from tests.netns.rows import play_together, short

pytestmark = pytest.mark.root


def test_row_10_thinking_is_not_silence(tmp_path):
    _, moved = play_together([thinking("10a", 6.0, None), thinking("10c", 4.0, 2.0)], tmp_path)
    assert moved["repeated"]
    assert moved["refused"]


def test_row_11_probes_are_cheap(tmp_path):
    silence = (Steady("w", rate=1, count=2), Steady("e", start_s=45.0, rate=1, count=1))
    idle = short("11a", flows=silence, span=(20.0, 45.0))
    waits = short("11b", flows=(replace(short("11b").flows[0], think_s=8.0),), span=(3.0, 9.0))
    play_together([waits, idle], tmp_path)
