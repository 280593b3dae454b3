"""Programs in a network namespace of their own, where they may do as they like."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a namespace")


def in_namespace(setup: str, program: str, *arguments: str) -> list[str]:
    """The lines that ``program``, Python, says in there after the shell did ``setup``, in which
    ``"$@"`` stands for its call. Skips the test where a namespace is not to be had.
    """
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", setup, "sh", sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if "Operation not permitted" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    print(done.stderr)  # for whoever reads why the test fails
    return done.stdout.splitlines()
