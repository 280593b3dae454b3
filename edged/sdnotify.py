"""Telling systemd how the daemon is: sd_notify(3) without its library.

Outside systemd (no ``NOTIFY_SOCKET``) every call does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """A service's line to its manager. Sending never blocks and never raises."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """Read ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID``."""
        address = environment.get("NOTIFY_SOCKET", "")
        if address.startswith("@"):  # the abstract namespace (Linux)
            address = "\0" + address[1:]
        self._address = address
        self._socket: socket.socket | None = None
        if address[:1] in ("/", "\0"):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        usec = environment.get("WATCHDOG_USEC", "")
        pid = environment.get("WATCHDOG_PID", str(os.getpid()))
        wanted = self._socket is not None and usec.isdigit() and pid == str(os.getpid())
        self.watchdog_period_s: float | None = int(usec) / 2e6 if wanted else None
        """Call `watchdog` this often (half of what systemd allows); ``None``: never."""

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is finished."""
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it, whatever came of it."""
        usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send(f"RELOADING=1\nMONOTONIC_USEC={usec}")

    def stopping(self, status: str) -> None:
        """The shutdown begins."""
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={_line(status)}")

    def watchdog(self) -> None:
        """The loop is alive."""
        self._send("WATCHDOG=1")

    def close(self) -> None:
        """Say no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, message: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            return  # the manager is gone or busy; it will ask again or restart us


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
