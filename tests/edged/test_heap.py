"""What is free is given back."""

import subprocess
import sys

import pytest

from edged import heap

HOLES = """
from edged.heap import spare_the_heap, trim_the_heap
import ctypes, pathlib

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

spare_the_heap()
assert not trim_the_heap(), "there is nothing to give back"
blocks = [ctypes.create_string_buffer(b"x" * 20_000) for _ in range(6000)]
full = resident()
kept = blocks[::10]
del blocks
assert trim_the_heap()
assert full - resident() > 60e6, (full, resident())
"""


@pytest.mark.skipif(not hasattr(heap._libc, "mallinfo2"), reason="not glibc 2.33 or later")
def test_pages_in_which_nothing_lives_are_given_back():
    subprocess.run([sys.executable, "-c", HOLES], check=True, timeout=60)
