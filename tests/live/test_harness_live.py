"""What the live tests start goes when they are killed."""

import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from tests.harness.live import ROOT, wait_for

OWNER = """
import sys, time
from tests.harness.live import Edged
edged = Edged({"lines": [{"name": "a"}]}, sys.argv[1]).start()
print(edged.process.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not installed")
def test_a_killed_test_run_leaves_no_daemon(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with owner:
        pid = int(owner.stdout.readline())
        assert psutil.pid_exists(pid)
        os.kill(owner.pid, signal.SIGKILL)
    wait_for(lambda: not running(pid), "edged to be gone")


def running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
