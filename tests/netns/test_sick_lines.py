"""Rows 5 and 6: a brown-out and flapping, and whom edged blames."""

from dataclasses import replace

import pytest

from tests.netns.rows import BY_KEY, play, short

pytestmark = pytest.mark.root


@pytest.mark.parametrize("key", ["5a", "5c"])
def test_row_5_brown_out_and_flapping(tmp_path, key):
    play(short(key), tmp_path)


def test_row_6_the_guilty_and_nobody_else(tmp_path):
    play(replace(BY_KEY["6"], cases=4), tmp_path)
