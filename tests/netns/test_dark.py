"""Real lines that let nothing pass for a while, for an upstream that speaks h3 alone."""

import threading
import time

import pytest

from tests.netns.lab import LineSpec
from tests.netns.site import CADDY, Site

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not CADDY.exists(), reason="caddy is not installed"),
]
LINES = (LineSpec("a", rtt_s=0.06, loss=0.001), LineSpec("b", rtt_s=0.15, loss=0.01))
RATE = 10.0
PATIENCE_S = 5.0
GONE_S, BACK_S = 3.0, 2.0
"""What it may take to find out that no line is left, and to be answered once one is back."""
DARK_S = 7.0


class Shots:
    """Ten requests a second, each on its own; how each ended, and when, by when it was due."""

    def __init__(self, site):
        self.site = site
        self.ended: dict[float, tuple[int, float]] = {}
        self._threads: list[threading.Thread] = []

    def shoot(self, seconds):
        begun = time.monotonic()
        for number in range(int(seconds * RATE)):
            due = begun + number / RATE
            time.sleep(max(0.0, due - time.monotonic()))
            thread = threading.Thread(target=self._one, args=(due, number % 2))
            with self.site.lab.edge:
                thread.start()
            self._threads.append(thread)

    def finish(self):
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()

    def _one(self, due, post):
        method, body = ("POST", b"x") if post else ("GET", b"")
        answer = self.site.edged.fetch("/llm/echo", method, body=body)
        self.ended[due] = (answer.status, time.monotonic())


@pytest.mark.parametrize("what", ["udp_blocked", "blackhole"])
def test_requests_outlast_lines_that_let_nothing_pass(tmp_path, what):
    with Site(tmp_path, seed=1, lines=LINES, endpoints=2, protocols=("h3",), caddy=True) as site:
        shots = Shots(site)
        shots.shoot(3)
        for line in "ab":
            gone_at = site.lab.set(line, **{what: True})
        shots.shoot(DARK_S)
        back_at = site.lab.set("b", **{what: False})
        shots.shoot(2)
        shots.finish()
    late, failed = [], []
    for due, (status, ended) in sorted(shots.ended.items()):
        told = f"due {due - back_at:+.1f} s, ended {ended - back_at:+.1f} s: {status}"
        alone_at = max(due, gone_at)
        if ended > min(alone_at + PATIENCE_S + GONE_S, max(due, back_at) + BACK_S):
            late.append(told)
        if status != 200 and (ended < gone_at or due + PATIENCE_S > back_at + BACK_S):
            failed.append(told)
    assert not failed
    assert not late
