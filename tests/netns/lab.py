"""Two hosts, an edge and an origin, and the lines between them: namespaces of the network that are
no one else's, kernels' own TCP, real packets. Needs root, ``ip`` and ``/dev/net/tun``.

    with Lab([LineSpec("a", rtt_s=0.060, loss=0.001), LineSpec("b", rtt_s=0.150)], seed=1) as lab:
        lab.origin.start(["caddy", "run"])
        with lab.edge:                      # this thread's new sockets and children are there
            socket.create_connection((lab.addresses[0], 443), source_address=(lab.source("a"), 0))
        lab.set("a", blackhole=True)

Labs do not see each other: all have the same addresses. When the process that made one is gone,
killed too, the forwarder ends whatever runs in its networks, and they vanish with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.netns.impair import Impairment

_CLONE_NEWNET = 0x40000000
_FORWARDER = Path(__file__).with_name("forwarder.py")
_SETTINGS = (
    "net.ipv6.conf.all.disable_ipv6=1",
    "net.ipv6.conf.default.disable_ipv6=1",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
    "net.ipv4.ping_group_range=0 2147483647",
)
_CONTROL = "net.ipv4.tcp_congestion_control"


def missing() -> str | None:
    """Why there can be no lab here; `None` if there can."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "ip (iproute2) is not installed"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"/dev/net/tun: {error.strerror}"
    return None


@dataclass(frozen=True, slots=True)
class LineSpec:
    """One line as first set up: half of the round trip each way, the same impairment both ways
    but for what ``up`` (edge to origin) and ``down`` say."""

    name: str
    """Also that of the devices: at most 15 characters."""
    rtt_s: float = 0.0
    loss: float = 0.0
    both: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further fields of `Impairment`."""
    up: dict[str, Any] = dataclasses.field(default_factory=dict)
    down: dict[str, Any] = dataclasses.field(default_factory=dict)

    def impairment(self, direction: str) -> Impairment:
        """Of one direction."""
        common = {"delay_s": self.rtt_s / 2, "loss": self.loss, **self.both}
        return Impairment().changed(common | (self.up if direction == "up" else self.down))


LINE_A = LineSpec("a", rtt_s=0.060, loss=0.001)
LINE_B = LineSpec("b", rtt_s=0.150, loss=0.01)


class Host:
    """One of the two. ``with host:`` puts this thread into its network, and what it starts."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.namespace = f"/proc/{pid}/fd/{descriptor}"
        """For ``nsenter --net=``."""
        self._processes: list[subprocess.Popen[Any]] = []
        self._was = threading.local()

    def __enter__(self) -> Host:
        was = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._was.__dict__.setdefault("stack", []).append(was)
        there = os.open(self.namespace, os.O_RDONLY)
        try:
            _setns(there)
        finally:
            os.close(there)
        return self

    def __exit__(self, *_: object) -> None:
        was = self._was.stack.pop()
        try:
            _setns(was)
        finally:
            os.close(was)

    def start(
        self,
        command: Sequence[str | Path],
        *,
        log: Path | None = None,
        env: dict[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[Any]:
        """A process in this network; it ends with the lab."""
        with self, contextlib.ExitStack() as stack:
            if log is not None:
                out = stack.enter_context(log.open("ab"))
                options = {"stdout": out, "stderr": out, **options}
            options.setdefault("stdin", subprocess.DEVNULL)
            process = subprocess.Popen(
                [*map(str, command)], env={**os.environ, **(env or {})}, **options
            )
        self._processes.append(process)
        return process

    def run(self, command: Sequence[str | Path], **options: Any) -> str:
        """What a command in this network prints. Raises `subprocess.CalledProcessError`."""
        with self:
            done = subprocess.run(
                [*map(str, command)], check=True, capture_output=True, text=True, **options
            )
        return done.stdout

    def stop(self) -> None:
        """End what was started here."""
        for process in self._processes:
            end(process)
        self._processes.clear()


class Lab:
    """Both hosts and the process that carries packets between them."""

    def __init__(
        self,
        lines: Iterable[LineSpec] = (LINE_A, LINE_B),
        *,
        seed: int = 0,
        endpoints: int = 3,
        congestion: str | None = None,
        edge_default: str | None = None,
    ) -> None:
        """``endpoints``: addresses of the origin; ``congestion``: TCP's control on both hosts
        (cubic, bbr, ...), else what this machine's kernel has by default.

        Routes say it, and a route's word outdoes what a socket chose before it connected. With
        ``edge_default`` (reno, or what ``net.ipv4.tcp_allowed_congestion_control`` of the machine
        holds) the edge's routes say nothing: sockets that choose nothing have that one."""
        control = f" congctl {congestion}" if congestion else ""
        self._edge_control = "" if edge_default else control
        self._origin_control = control
        edge_settings = (*_SETTINGS, *([f"{_CONTROL}={edge_default}"] if edge_default else ()))
        self.lines = {line.name: line for line in lines}
        self.addresses = [f"10.72.{number}.1" for number in range(1, endpoints + 1)]
        self._numbers = {name: number for number, name in enumerate(self.lines, 1)}
        self._plan = {
            "seed": seed,
            "lines": {
                name: {way: dataclasses.asdict(line.impairment(way)) for way in ("up", "down")}
                for name, line in self.lines.items()
            },
            "edge": {"settings": edge_settings, "ip": self._edge_ip()},
            "origin": {"settings": _SETTINGS, "ip": self._origin_ip()},
        }
        self._lock = threading.Lock()

    def source(self, line: str) -> str:
        """The edge's address on a line; traffic from it takes that line."""
        return f"10.71.{self._numbers[line]}.2"

    def mark(self, line: str) -> int:
        """The fwmark that takes a line."""
        return self._numbers[line]

    def _edge_ip(self) -> list[str]:
        commands = ["link set lo up"]
        for name, number in self._numbers.items():
            commands += [
                f"link set dev {name} mtu 1500 txqueuelen 5000 up",
                f"addr add 10.71.{number}.2/24 dev {name}",
                f"route add default dev {name} metric {number}{self._edge_control}",
                f"route add default dev {name} table {100 + number}{self._edge_control}",
                f"rule add from 10.71.{number}.2 table {100 + number}",
                f"rule add fwmark {number} table {100 + number}",
            ]
        return commands

    def _origin_ip(self) -> list[str]:
        commands = ["link set lo up", *(f"addr add {a}/32 dev lo" for a in self.addresses)]
        for name, number in self._numbers.items():
            commands += [
                f"link set dev {name} mtu 1500 txqueuelen 5000 up",
                f"addr add 10.71.{number}.1/32 dev {name}",
                f"route add 10.71.{number}.0/24 dev {name}{self._origin_control}",
            ]
        return commands

    def __enter__(self) -> Lab:
        if reason := missing():
            raise RuntimeError(f"no lab here: {reason}")
        self._forwarder = subprocess.Popen(
            [sys.executable, "-B", str(_FORWARDER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            descriptors = self._ask(self._plan)
        except BaseException:
            self._forwarder.kill()
            self._forwarder.communicate()
            raise
        pid = self._forwarder.pid
        self.edge = Host(pid, descriptors["edge"])
        self.origin = Host(pid, descriptors["origin"])
        return self

    def __exit__(self, *_: object) -> None:
        self.edge.stop()
        self.origin.stop()
        assert self._forwarder.stdin
        self._forwarder.stdin.close()
        end(self._forwarder)
        for stream in (self._forwarder.stdout, self._forwarder.stderr):
            assert stream
            stream.close()

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._forwarder.stdin, self._forwarder.stdout
        assert stdin
        assert stdout
        with self._lock:
            try:
                stdin.write(json.dumps(command).encode() + b"\n")
                stdin.flush()
                line = stdout.readline()
            except BrokenPipeError:
                line = b""
        if not line:
            assert self._forwarder.stderr
            raise RuntimeError(f"the forwarder ended: {self._forwarder.stderr.read().decode()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer

    def set(self, line: str, direction: str = "both", **changes: Any) -> float:
        """Change fields of `Impairment`; ``up`` leads to the origin. The time it took effect, on
        the clock of `time.monotonic`. Packets already under way arrive."""
        ways = ("up", "down") if direction == "both" else (direction,)
        plain = {
            name: dataclasses.asdict(value)
            if dataclasses.is_dataclass(value) and not isinstance(value, type)
            else value
            for name, value in changes.items()
        }
        at: float = self._ask({"set": [[line, way, plain] for way in ways]})["at"]
        return at

    def restore(self, line: str) -> float:
        """Put a line back to what its spec says."""
        spec = self.lines[line]
        changes = [[line, way, dataclasses.asdict(spec.impairment(way))] for way in ("up", "down")]
        at: float = self._ask({"set": changes})["at"]
        return at

    def counters(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By line and direction: the fields of `impair.Counters`."""
        counters: dict[str, dict[str, dict[str, Any]]] = self._ask({"counters": True})["counters"]
        return counters

    def offered_bytes(self) -> dict[str, int]:
        """IP bytes that both hosts sent on each line so far, both directions."""
        return {
            line: sum(way["offered"]["bytes"] for way in ways.values())
            for line, ways in self.counters().items()
        }


def end(process: subprocess.Popen[Any]) -> int:
    """Ask a process to end, and see to it; its status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


def _setns(descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")
