"""What this host itself knows of names: /etc/hosts, /etc/resolv.conf and getaddrinfo."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from edged.dnsquery import Server

_RECHECK_S = 5.0
_MAX_THREADS = 16

T = TypeVar("T")


class SystemFiles:
    """/etc/hosts and /etc/resolv.conf, read again when they changed (looked at every 5 s)."""

    def __init__(self, *, hosts: str = "/etc/hosts", resolv_conf: str = "/etc/resolv.conf") -> None:
        self._hosts = _Watched(hosts, _parse_hosts)
        self._servers = _Watched(resolv_conf, _parse_resolv_conf)

    def addresses(self, host: str, now: float) -> tuple[str, ...]:
        """What /etc/hosts says of ``host`` (lower-case); ``localhost`` is always known."""
        found = self._hosts.value(now).get(host, ())
        if not found and (host == "localhost" or host.endswith(".localhost")):
            return ("::1", "127.0.0.1")  # RFC 6761, 6.3: never asked of anyone
        return found

    def servers(self, now: float) -> tuple[Server, ...]:
        """The ``nameserver`` lines; without any the local one (resolv.conf(5))."""
        return self._servers.value(now) or (Server("127.0.0.1"),)


class _Watched(Generic[T]):
    """A file's parsed content; a missing file counts as empty."""

    def __init__(self, path: str, parse: Callable[[str], T]) -> None:
        self._path = path
        self._parse = parse
        self._stamp: tuple[int, int] | None = None
        self._look_at = float("-inf")
        self._value = parse("")

    def value(self, now: float) -> T:
        if now >= self._look_at:
            self._look_at = now + _RECHECK_S
            self._refresh()
        return self._value

    def _refresh(self) -> None:
        try:
            stat = os.stat(self._path)
            stamp = (stat.st_mtime_ns, stat.st_size)
            if stamp != self._stamp:
                text = Path(self._path).read_text(encoding="utf-8", errors="replace")
                self._value = self._parse(text)
                self._stamp = stamp
        except OSError:
            self._value = self._parse("")
            self._stamp = None


def _parse_hosts(text: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        if not _is_address(address):
            continue
        for name in names:
            key = name.lower().rstrip(".")
            if address not in found.get(key, ()):
                found[key] = (*found.get(key, ()), address)
    return found


def _parse_resolv_conf(text: str) -> tuple[Server, ...]:
    servers = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and _is_address(words[1]):
            servers.append(Server(words[1]))
    return tuple(servers[:3])  # resolv.conf(5): MAXNS


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


_threads = threading.BoundedSemaphore(_MAX_THREADS)


async def getaddrinfo(host: str) -> tuple[str, ...]:
    """The system resolver's answer, in its order (RFC 6724). Raises `OSError`.

    Runs on a daemon thread of its own: a resolver that hangs for half a minute must hold up
    neither the loop, nor other names, nor the end of the process.
    """
    if not _threads.acquire(blocking=False):
        raise OSError(f"{_MAX_THREADS} look-ups are stuck in the system resolver")
    loop = asyncio.get_running_loop()
    future: asyncio.Future[tuple[str, ...]] = loop.create_future()

    def settle(result: tuple[str, ...] | OSError) -> None:
        if future.done():
            return
        if isinstance(result, OSError):
            future.set_exception(result)
        else:
            future.set_result(result)

    def work() -> None:
        result: tuple[str, ...] | OSError
        try:
            infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            result = tuple(dict.fromkeys(str(info[4][0]) for info in infos))
        except OSError as error:
            result = error
        except UnicodeError as error:
            result = OSError(f"{host!r} is no host name: {error}")
        finally:
            _threads.release()
        with contextlib.suppress(RuntimeError):  # the loop ended meanwhile: nobody waits
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=work, name=f"getaddrinfo {host}", daemon=True).start()
    return await future
