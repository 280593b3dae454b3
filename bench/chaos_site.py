"""The whole that `bench/chaos.py` shakes: two lines, two servers (a Caddy each, origins behind), a
name server, and one ``edged run``; and how each event is made to happen to it.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.chaos_dns import PORT as DNS_PORT
from bench.chaos_dns import READY
from bench.chaos_schedule import ALL, DNS, KINDS, Health, Kind, Step
from bench.chaos_verdict import Timeline
from bench.wan_rows import WIDE
from tests.harness.live import Edged
from tests.netns.lab import end
from tests.netns.site import CADDY_PORT, Site

UPSTREAMS: dict[str, Sequence[str]] = {
    "h1": ("h1",),
    "h2": ("h2",),
    "h3": ("h3",),
    "any": ("h3", "h2", "h1"),
}
"""By name, the protocols that its endpoints speak; each has both servers."""
SERVERS = 2
_KILLED = "server killed"


class ChaosSite:
    """``with ChaosSite(directory, seed) as site: site.happen(step)``"""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        # The name server has an address of its own, so that it can be silent alone.
        self.site = Site(directory, lines=WIDE, seed=seed, endpoints=SERVERS + 1, edged=False)
        self.lab = self.site.lab
        self.timeline = Timeline(self.lab.lines)
        self.edged: Edged
        self._servers: dict[str, subprocess.Popen[Any]] = {}
        self._dns: subprocess.Popen[Any]
        self._stack = contextlib.ExitStack()
        self._comings: list[threading.Thread] = []

    def __enter__(self) -> ChaosSite:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if exc[0] is None:
                self.edged.__exit__()
        finally:
            self._stack.close()

    def _start(self) -> None:
        self._stack.enter_context(self.site)
        for number in range(1, SERVERS + 1):
            self._start_server(f"e{number}")
        self._start_dns()
        spool = self.directory / "spool"
        spool.mkdir()
        self.edged = Edged(self._configuration(), self.directory)
        with self.lab.edge:
            self.edged.start()
        self._stack.callback(self.edged.stop)

    def _configuration(self) -> dict[str, Any]:
        usual = self.site.configuration()
        lines = [{**line, "dns": [f"{self._dns_address}:{DNS_PORT}"]} for line in usual["lines"]]
        endpoints = [
            {"name": name, "url": f"https://{name}.lab.test:{CADDY_PORT}"}
            for name in (f"e{number}" for number in range(1, SERVERS + 1))
        ]
        return {
            **usual,
            "lines": lines,
            "limits": {"spool_dir": "spool"},
            "upstreams": [
                {
                    "name": name,
                    "prefix": f"/{name}",
                    "endpoints": [{**one, "protocols": list(protocols)} for one in endpoints],
                }
                for name, protocols in UPSTREAMS.items()
            ],
        }

    # -- events ------------------------------------------------------------------------------------

    def happen(self, step: Step) -> None:
        """Make it so, and note when it was. A server that comes back does so behind the call."""
        kind, target = KINDS[step.event.kind], step.event.target
        if target == DNS:
            self._dns_event(kind.name, step.begins)
        elif target in self._servers:
            self._server_event(kind.name, target, step.begins)
        else:
            for line in self.lab.lines if target == ALL else (target,):
                self._line_event(kind, line, step.begins)

    def settle(self) -> None:
        """Wait for servers that are on their way."""
        for coming in self._comings:
            coming.join()

    def _line_event(self, kind: Kind, line: str, begins: bool) -> None:
        usual = asdict(self.lab.lines[line].impairment("up"))
        del usual["silent_hosts"]  # the name server's affair
        if begins:
            changes = dict(kind.changes)
            if "delay_s" in changes:
                changes["delay_s"] += usual["delay_s"]
            at = self.lab.set(line, kind.direction, **changes)
        else:
            at = self.lab.set(line, **usual)
        self.timeline.line(line, at, kind.health if begins else Health.GOOD)

    def _server_event(self, kind: str, name: str, begins: bool) -> None:
        if begins:
            self._servers[name].send_signal(signal.SIGKILL if kind == _KILLED else signal.SIGTERM)
            self._gone_at = time.monotonic()
        else:
            coming = threading.Thread(target=self._come_back, args=(name, self._gone_at))
            coming.start()
            self._comings.append(coming)

    def _come_back(self, name: str, gone_at: float) -> None:
        end(self._servers[name])
        self._start_server(name)
        self.timeline.restarts.append((gone_at, time.monotonic(), name))

    def _start_server(self, name: str) -> None:
        address = self.lab.addresses[int(name[1:]) - 1]
        self._servers[name] = self.site.start_caddy([address])

    @property
    def _dns_address(self) -> str:
        return self.lab.addresses[SERVERS]

    def _start_dns(self) -> None:
        names = [f"e{n + 1}.lab.test={self.lab.addresses[n]}" for n in range(SERVERS)]
        script = Path(__file__).with_name("chaos_dns.py")
        self._dns = self.lab.origin.start(
            [sys.executable, script, self._dns_address, *names], stdout=subprocess.PIPE
        )
        assert self._dns.stdout
        self._stack.callback(self._dns.stdout.close)
        if self._dns.stdout.readline().decode().strip() != READY:
            raise RuntimeError("the name server did not start")

    def _dns_event(self, kind: str, begins: bool) -> None:
        if kind == "DNS killed":
            if begins:
                end(self._dns)
            else:
                self._start_dns()
            return
        for line in self.lab.lines:
            self.lab.set(line, silent_hosts=(self._dns_address,) if begins else ())
