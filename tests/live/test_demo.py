"""The demo as a user runs it: half a minute, no failed request, the failover seen."""

import json
import subprocess

import pytest

from tests.harness.live import ROOT, Edged

GAP_S = 1.0
"""From the silent death of the line in use to the next request completed over another."""


@pytest.mark.slow
def test_the_demo_loses_no_request_and_fails_over_within_a_second():
    done = subprocess.run(
        [*Edged.EXECUTABLE, "demo", "--seconds", "25", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        check=False,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    print(told)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert told["failed"] == 0
    assert told["requests"] > 300
    assert told["failover_gap_s"] < GAP_S
    assert told["longest_s"] is not None
    assert told["streams"] > 0
    assert told["tokens_lost"] >= 0
