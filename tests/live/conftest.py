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


class OwnLoop:
    """An event loop in a thread of its own, so that blocking clients can be used in the test."""

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.call(self._end_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    async def _end_tasks(self):
        """As `asyncio.run` does: a task that is merely forgotten is told on stderr."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def call(self, coroutine):
        """Run ``coroutine`` in the loop; its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def do(self, action, *args, **named):
        """Call a function in the loop; its result."""

        async def act():
            return action(*args, **named)

        return self.call(act())


class LabThread(OwnLoop):
    """``with LabThread(**spec) as thread``: ``thread.lab`` is a `Lab` in a loop of its own."""

    def __init__(self, **spec):
        self.spec = spec

    def __enter__(self):
        super().__enter__()
        self.lab = self.call(self._make())
        return self

    def __exit__(self, *exc):
        self.call(self.lab.stop())
        super().__exit__(*exc)

    async def _make(self):
        lab = Lab(**self.spec)
        await lab.start()
        return lab


QUICK_LINES = (
    LineSpec.symmetric("cn2", "127.71.1.2", kind="cn2", rtt_s=0.020),
    LineSpec.symmetric("bgp", "127.71.2.2", kind="bgp", rtt_s=0.050),
)


@pytest.fixture(scope="module")
def lab():
    with LabThread(line_specs=QUICK_LINES, seed=1) as thread:
        yield thread


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
    # The SDKs keep their tunnels open; nobody waits for those at the end.
    quick = {"log": {"access": "access.log"}, "limits": {"drain_s": "100ms"}}
    with Edged({**quick, **config}, directory) as edged:
        yield edged


def need(program):
    """Skip with the reason where a program is missing."""
    path = shutil.which(program, path="/usr/sbin:/usr/bin:/bin:/usr/local/bin")
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path
