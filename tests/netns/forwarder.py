"""Joins two network namespaces by TUN devices, in a process of its own.

    python forwarder.py < control > answers

The first line of the control is the plan (`main`); each further line a command (`Forwarder.obey`),
answered by one line. At the end of the control, which its owner's death brings about, the process
kills what runs in the namespaces and ends; with it they vanish, for they have no names, live by
its descriptors, and are entered through ``/proc/PID/fd/N``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.netns.impair import NEVER, Impairment, Wire

_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_PACKET_BYTES = 4096
_BATCH = 64
_CLEAR_ROUNDS = 50
_NICE = -15
"""Its turn comes first: late packets would be a delay that nobody set."""


class Forwarder:
    """The wires between the devices, and the loop that serves them."""

    def __init__(self, control: int, answers: int) -> None:
        self._control, self._answers = control, answers
        self._unread = b""
        self._wires: dict[tuple[str, str], Wire] = {}
        self._from: dict[int, Wire] = {}
        self._to: list[tuple[Wire, int]] = []

    def join(self, line: str, edge: int, origin: int, plan: dict[str, Any], seed: int) -> None:
        """Make a line's two wires, ``up`` from the edge to the origin and ``down``."""
        for direction, source, sink in (("up", edge, origin), ("down", origin, edge)):
            wire = Wire(Impairment().changed(plan[direction]), f"{seed}/{line}/{direction}")
            self._wires[line, direction] = wire
            self._from[source] = wire
            self._to.append((wire, sink))

    def say(self, document: dict[str, Any]) -> None:
        """Answer by one line."""
        os.write(self._answers, json.dumps(document).encode() + b"\n")

    def run(self) -> None:
        """Serve until the control ends."""
        # select, because epoll's timeouts are whole milliseconds and these descriptors few.
        sources = [self._control, *self._from]
        while True:
            due = min(wire.due for wire, _ in self._to)
            wait = None if due == NEVER else max(0.0, due - time.monotonic())
            for source in select.select(sources, (), (), wait)[0]:
                if source != self._control:
                    self._receive(source, self._from[source])
                elif not self._listen():
                    return
            self._deliver()

    def _receive(self, source: int, wire: Wire) -> None:
        for _ in range(_BATCH):
            try:
                packet = os.read(source, _PACKET_BYTES)
            except BlockingIOError:
                return
            wire.push(packet, time.monotonic())

    def _deliver(self) -> None:
        now = time.monotonic()
        for wire, sink in self._to:
            if wire.due > now:
                continue
            for _ in range(_BATCH):
                packet = wire.pop(now)
                if packet is None:
                    break
                try:
                    os.write(sink, packet)
                except OSError:
                    lost = wire.counters.lost
                    lost["device"] = lost.get("device", 0) + 1

    def _listen(self) -> bool:
        data = os.read(self._control, 1 << 16)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            try:
                answer = self.obey(json.loads(line))
            except (KeyError, TypeError, ValueError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            self.say(answer)
        return bool(data)

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """``{"set": [[line, direction, {field: value}], ...]}`` changes wires, all at once and
        at the time that is answered; ``{"counters": true}`` tells them."""
        if "set" in command:
            changes = [
                (wire := self._wires[line, direction], wire.impairment.changed(fields))
                for line, direction, fields in command["set"]
            ]
            for wire, impairment in changes:
                wire.set(impairment)
            return {"at": time.monotonic()}
        counters: dict[str, dict[str, Any]] = {}
        for (line, direction), wire in self._wires.items():
            counters.setdefault(line, {})[direction] = wire.counters.document()
        return {"counters": counters, "at": time.monotonic()}


def _namespace(settings: list[str]) -> int:
    """A fresh network namespace, entered; its descriptor."""
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")
    for setting in settings:
        name, _, value = setting.partition("=")
        Path("/proc/sys", *name.split(".")).write_text(value)
    return os.open("/proc/self/ns/net", os.O_RDONLY)


def _device(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
    fcntl.ioctl(descriptor, _TUNSETIFF, request)
    return descriptor


def _side(plan: dict[str, Any], lines: list[str]) -> tuple[int, dict[str, int]]:
    namespace = _namespace(plan["settings"])
    devices = {line: _device(line) for line in lines}
    subprocess.run(["ip", "-batch", "-"], input="\n".join(plan["ip"]).encode(), check=True)
    return namespace, devices


def _inhabitants(namespaces: set[int]) -> list[int]:
    """Processes in these namespaces, but for this one and its owner, who may stand in one."""
    spared, found = (os.getpid(), os.getppid()), []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in spared:
            with contextlib.suppress(OSError):  # it ended, or is a kernel's
                if os.stat(f"/proc/{entry}/ns/net").st_ino in namespaces:
                    found.append(int(entry))
    return found


def _clear(descriptors: list[int]) -> None:
    """Kill what runs in the namespaces; again, in case something was just being started."""
    namespaces = {os.fstat(descriptor).st_ino for descriptor in descriptors}
    for _ in range(_CLEAR_ROUNDS):
        found = _inhabitants(namespaces)
        if not found:
            return
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def main() -> None:
    """Plan: ``seed``, ``lines`` {name: {up, down: impairment}}, and of ``edge`` and ``origin``
    ``settings`` (sysctl) and ``ip`` (commands)."""
    control, answers = 0, 1
    forwarder = Forwarder(control, answers)
    plan = json.loads(sys.stdin.buffer.raw.readline())
    os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    names = list(plan["lines"])
    edge, edge_devices = _side(plan["edge"], names)
    origin, origin_devices = _side(plan["origin"], names)
    for name, line in plan["lines"].items():
        forwarder.join(name, edge_devices[name], origin_devices[name], line, plan["seed"])
    forwarder.say({"edge": edge, "origin": origin})
    try:
        forwarder.run()
    finally:
        _clear([edge, origin])


if __name__ == "__main__":
    main()
