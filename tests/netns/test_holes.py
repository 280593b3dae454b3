"""Row 4: a line that is dead one way, for UDP, or for large packets."""

import pytest

from tests.netns.rows import play, short
from tests.netns.site import CADDY

pytestmark = pytest.mark.root
with_caddy = pytest.mark.skipif(not CADDY.exists(), reason="caddy is not installed")


@pytest.mark.parametrize(
    "key",
    ["4b", "4e", *(pytest.param(key, marks=with_caddy) for key in ("4d", "4f", "4g"))],
)
def test_row_4_half_dead_lines(tmp_path, key):
    play(short(key), tmp_path)
