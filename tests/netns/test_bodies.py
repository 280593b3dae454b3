"""Rows 7 and 8: large bodies over lines that die, and the steady state at loss."""

import pytest

from bench.wan_rows import DEAD, Event
from bench.wan_traffic import Cuts, Documents, Steady, Upload
from tests.netns.rows import play, short

pytestmark = pytest.mark.root


def test_row_7_an_upload_goes_on(tmp_path):
    flows = (Steady("w", rate=1, count=2), Upload("u", start_s=2.0))
    play(short("7a", flows=flows, events=(Event(3.4, "a", DEAD, spread_s=0.2),)), tmp_path)


def test_row_7_what_is_broken_off_looks_broken(tmp_path):
    flows = tuple(Cuts("c", target=f"/{carrier}", count=4) for carrier in ("h1", "h2", "h3"))
    upstreams = {carrier: {"protocols": (carrier,)} for carrier in ("h1", "h2", "h3")}
    play(short("7b", flows=flows, site={"upstreams": upstreams}, prefix=""), tmp_path)


def test_row_8_the_median_stays_at_the_round_trip(tmp_path):
    play(short("8a", flows=(Steady("r", method="GET", count=200),)), tmp_path)


@pytest.mark.parametrize("key", ["8d", "8e"])
def test_row_8_documents(tmp_path, key):
    play(short(key, flows=(Documents("d", start_s=2.0, count=4, pause_s=0.2),)), tmp_path)
