"""A daemon that was stopped for seconds convicts nobody when it goes on."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from tests.netns.site import Site


@pytest.mark.root
def test_a_process_stopped_for_three_seconds_under_traffic_finds_no_line_down(tmp_path):
    with Site(tmp_path, seed=1) as site, site.lab.edge:
        over, failures = threading.Event(), []

        def ask():
            with site.lab.edge:
                while not over.is_set():
                    answer = site.edged.fetch("/llm/echo", "POST", body=b"x")
                    if answer.status != 200:
                        failures.append(answer.status)
                    time.sleep(0.05)

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        time.sleep(2.0)
        process = site.edged.process.pid
        os.kill(process, signal.SIGSTOP)
        time.sleep(3.0)
        os.kill(process, signal.SIGCONT)
        time.sleep(2.0)
        over.set()
        for client in clients:
            client.join()
        assert not failures
        assert "-> DOWN" not in site.edged.log
