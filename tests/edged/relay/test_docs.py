"""docs/relay.md does what it says: every block of it is run, in order."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.live import free_port

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "relay.md"


@pytest.mark.skipif(
    not all(map(shutil.which, ("curl", "openssl", "bash"))), reason="curl, openssl, bash"
)
def test_every_block_of_the_page_runs(tmp_path):
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert len(blocks) > 8
    script = "\n".join(f"echo '== {n}'\n{block}" for n, block in enumerate(blocks))
    for port in ("8443", "7071", "8000"):
        script = script.replace(port, str(free_port()))
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    edged = bin_dir / "edged"
    edged.write_text(f'#!/bin/sh\nexec {sys.executable} -m edged "$@"\n')
    edged.chmod(0o755)
    path = f"{bin_dir}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    log = tmp_path / "relay.log"
    said = done.stdout
    assert done.returncode == 0, (said, done.stderr, log.exists() and log.read_text())
    parts = dict(re.findall(r"^== (\d+)\n(.*?)(?=^== |\Z)", said, re.M | re.S))
    parts = {int(n): text for n, text in parts.items()}
    told = next(text for text in parts.values() if "broken off after" in text)
    assert 0 < int(re.search(r"after (\d+) bytes", told)[1]) < 30_000_000
    assert any("edged-state:" in text for text in parts.values())
    assert any(text.endswith("complete\n") for text in parts.values())
    assert [text.split()[-1] for text in parts.values() if re.search(r"^1$", text, re.M)] == [
        "1",
        "1",
    ]
    upload = next(text for text in parts.values() if text.strip().endswith("  -"))
    answered, hashed = upload.split()[:2]
    assert answered == hashed
    assert "Not Found\nNot Found\n" in said
    assert "target_not_allowed" in said
