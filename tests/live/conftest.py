"""Live fixtures: the lab in a thread of its own, and `edged run` as a process in front of it."""

import asyncio
import shutil
import threading
from pathlib import Path

import pytest
import yaml

from edged.lab.lab import Lab
from edged.lab.lines import LineSpec
from tests.harness.live import Edged


class LabThread:
    """A `Lab` in its own loop, so that blocking clients can be used in the test."""

    def __init__(self, **spec):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.lab = self.call(self._make(spec))

    async def _make(self, spec):
        lab = Lab(**spec)
        await lab.start()
        return lab

    def call(self, coroutine):
        """Run ``coroutine`` in the lab's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def stop(self):
        self.call(self.lab.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


QUICK_LINES = (
    LineSpec.symmetric("cn2", "127.71.1.2", kind="cn2", rtt_s=0.020),
    LineSpec.symmetric("bgp", "127.71.2.2", kind="bgp", rtt_s=0.050),
)


@pytest.fixture(scope="module")
def lab():
    thread = LabThread(line_specs=QUICK_LINES, seed=1)
    yield thread
    thread.stop()


@pytest.fixture(scope="module")
def edged_over_lab(lab, tmp_path_factory):
    """One daemon for all tests of a module."""
    file = lab.lab.write_config()
    directory = tmp_path_factory.mktemp("edged")
    config = yaml.safe_load(Path(file).read_text())
    policies = Path(file).parent / "policies.d"
    shutil.copytree(policies, directory / "policies.d")
    for key in ("listen", "log", "node"):
        config.pop(key, None)
    with Edged({"log": {"access": "access.log"}, **config}, directory) as edged:
        yield edged


def need(program):
    """Skip with the reason where a program is missing."""
    path = shutil.which(program, path="/usr/sbin:/usr/bin:/bin:/usr/local/bin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path
