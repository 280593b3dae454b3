"""The usual whole: each carrier reaches the origin over its line, also through Caddy."""

import pytest

from tests.netns.lab import LineSpec
from tests.netns.site import CADDY, Site

pytestmark = pytest.mark.root

NEAR, FAR = LineSpec("near", rtt_s=0.010), LineSpec("far", rtt_s=0.060)


@pytest.mark.parametrize(("carrier", "caddy"), [("h1", False), ("h2", False), ("h3", True)])
def test_requests_arrive(tmp_path, carrier, caddy):
    if caddy and not CADDY.exists():
        pytest.skip("caddy is not installed")
    site = Site(tmp_path, lines=(NEAR, FAR), protocols=(carrier,), caddy=caddy, endpoints=1 + caddy)
    with site, site.lab.edge:
        for name in ("r1", "r2"):
            answer = site.edged.fetch("/llm/echo", "POST", body=b"x", headers={"x-lab-id": name})
            assert answer.status == 200
            assert site.edged.why(answer)["request"]["carrier"] == carrier
        client = answer.headers["x-remote"] if caddy else answer.json["client"]
        assert client in [site.lab.source(line) for line in site.lab.lines]
        assert site.executions() == {"r1": 1, "r2": 1}
