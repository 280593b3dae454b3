"""``edged run``: a `Daemon` as a process: loop, log, signals, systemd, policy files that change.

SIGTERM drains and stops, SIGINT the same but briefly, a second of either stops at once; SIGHUP
reloads; SIGUSR1 reopens the access log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import uvloop

from edged import compiled
from edged.admin.views import bind_problem
from edged.config import Config, ConfigError
from edged.config_policies import policy_files
from edged.daemon import Daemon
from edged.failure import Failed
from edged.heap import TRIM_EVERY_S, spare_the_collector, spare_the_heap, trim_the_heap
from edged.sdnotify import Notifier
from edged.upstream.tls import TlsConfigError
from edged.version import VERSION

_log = logging.getLogger("edged")

WATCH_S = 1.0
"""How often the policy files are looked at."""
SETTLE_S = 0.3
"""A file that changed is read when it has been still for this long."""
INTERRUPT_GRACE_S = 1.0
"""Ctrl-C waits no longer than this for what is in flight."""


def run(file: str, kind: type[Daemon] = Daemon) -> int:
    """Run until told to stop; the result is the exit status. Raises `Failed`."""
    try:
        config = kind.load_config(file)
    except ConfigError as error:
        mistakes = "\n  ".join(str(mistake) for mistake in error.mistakes)
        raise Failed(f"{file} has mistakes:\n  {mistakes}") from None
    set_up_log(config.log_level)
    raise_file_limit()
    spare_the_heap()
    try:
        return uvloop.run(Process(config, kind).main())
    except (OSError, TlsConfigError) as error:
        text = getattr(error, "strerror", None) or str(error)
        opened = getattr(error, "filename", None)
        raise Failed(f"cannot open {opened}: {text}" if opened else text) from None


class Process:
    """One run of the daemon."""

    def __init__(self, config: Config, kind: type[Daemon] = Daemon) -> None:
        self._config = config
        self._kind = kind
        self._notifier = Notifier()
        self._stop: asyncio.Future[int] | None = None
        self._daemon: Daemon | None = None
        self._group: asyncio.TaskGroup | None = None

    async def main(self) -> int:
        """Start, serve, stop. Raises OSError if it cannot start."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_told_in_a_line)
        stop = self._stop = loop.create_future()
        self._catch_signals(loop)
        daemon = self._daemon = self._kind(self._config)
        await daemon.start()
        spare_the_collector()
        self._announce(daemon)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                work = (self._watch(), self._dog(), self._tidy())
                background = [group.create_task(one) for one in work]
                await asyncio.wait({stop, daemon.failed}, return_when=asyncio.FIRST_COMPLETED)
                self._group = None
                for task in background:
                    task.cancel()
            if daemon.failed.done():
                _log.critical("stopped by a bug: %r", daemon.failed.exception())
                return 70
            return await self._wind_down(daemon, stop.result())
        finally:
            await daemon.close()
            self._notifier.close()

    def _announce(self, daemon: Daemon) -> None:
        for line in self._config.topology.lines:
            if (problem := bind_problem(line)) is not None:
                _log.warning("%s", problem)
        addresses = ", ".join(daemon.live.listening) if daemon.live else ""
        _log.info("edged %s (%s) is ready on %s", VERSION, compiled.state(), addresses)
        self._notifier.ready(f"serving on {addresses}")

    async def _wind_down(self, daemon: Daemon, number: int) -> int:
        """Drain; a second signal ends it at once."""
        grace_s = self._grace_s(daemon, number)
        clients = daemon.proxy.hub
        _log.info(
            "%s: draining for at most %g s: %s in progress, %s connected",
            signal.Signals(number).name,
            grace_s,
            _count(clients.requests_open, "request"),
            _count(len(clients.connections), "client"),
        )
        self._notifier.stopping("draining")
        loop = asyncio.get_running_loop()
        draining = loop.create_task(daemon.drain(grace_s))
        for again in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(again, draining.cancel)
        cut = 0
        with contextlib.suppress(asyncio.CancelledError):
            cut = await draining
        _log.info("stopped%s", f"; {cut} clients were cut off" if cut else "")
        return 128 + number if number == signal.SIGINT else 0

    @staticmethod
    def _grace_s(daemon: Daemon, number: int) -> float:
        grace_s = daemon.config.limits.drain_s
        return min(grace_s, INTERRUPT_GRACE_S) if number == signal.SIGINT else grace_s

    # -- signals ----------------------------------------------------------------------------------

    def _catch_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_by, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload_by, "SIGHUP")
        loop.add_signal_handler(signal.SIGUSR1, self._reopen)

    def _stop_by(self, number: int) -> None:
        if self._stop is not None and not self._stop.done():
            self._stop.set_result(number)

    def _reload_by(self, by: str) -> None:
        self._spawn(self._reload(by))

    def _reopen(self) -> None:
        if self._daemon is not None and self._daemon.access_log is not None:
            self._daemon.access_log.reopen()

    def _spawn(self, awaitable: Coroutine[Any, Any, None]) -> None:
        if self._group is None:
            awaitable.close()  # it is stopping: too late for a reload
        else:
            self._group.create_task(awaitable)

    # -- background -------------------------------------------------------------------------------

    async def _reload(self, by: str) -> None:
        if self._daemon is None:
            return
        self._notifier.reloading()
        note = await self._daemon.reload(by)
        refused = f"reload by {by} refused, running on: {'; '.join(note.mistakes)}"
        self._notifier.ready(f"reloaded by {by}" if note.ok else refused)

    async def _watch(self) -> None:
        """Reload when a policy file changed (or came, or went) and has been still since."""
        seen = _stamp(self._config)
        while True:
            await asyncio.sleep(WATCH_S)
            assert self._daemon is not None
            stamp = _stamp(self._daemon.config)
            while stamp != seen:
                seen = stamp
                await asyncio.sleep(SETTLE_S)
                stamp = _stamp(self._daemon.config)
                if stamp == seen:
                    await self._reload("policy file")

    async def _tidy(self) -> None:
        """Give memory back that an outage took."""
        while True:
            await asyncio.sleep(TRIM_EVERY_S)
            trim_the_heap()

    async def _dog(self) -> None:
        """Tell systemd that the loop turns."""
        period_s = self._notifier.watchdog_period_s
        while period_s is not None:
            self._notifier.watchdog()
            await asyncio.sleep(period_s)


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'' if number == 1 else 's'}"


Stamp = tuple[tuple[str, int, int, int], ...]


def _stamp(config: Config) -> Stamp:
    """What changes when a policy file does."""
    if config.policies_dir is None:
        return ()
    try:
        found = []
        for file in policy_files(config.policies_dir):
            stat = file.stat()
            found.append((file.name, stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return tuple(found)
    except OSError:
        return ()  # in the middle of a change; the next look tells


def raise_file_limit() -> None:
    """Allow as many descriptors as the host does: a shell's 1024 is a few hundred exchanges."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:
        _log.info("at most %d open files: the limit cannot be raised (%s)", soft, error)


def set_up_log(level: str) -> None:
    """The daemon's own log: lines on stderr, with the priorities that journald reads."""
    handler = logging.StreamHandler(sys.stderr)
    under_systemd = "JOURNAL_STREAM" in os.environ
    handler.setFormatter(_Journal() if under_systemd else logging.Formatter(_FORMAT, _TIME))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for room in ("edged", "probes", "policies"):
        logging.getLogger(room).setLevel(level.upper())


_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s"
_TIME = "%H:%M:%S"
_TOO_LATE = "the handler is closed"
"""What uvloop says of a TLS connection that had something to send when its socket was closed."""
_PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class _Journal(logging.Formatter):
    """journald adds the time itself and takes the priority from ``<N>`` (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITY.get(record.levelname, 6)}>{super().format(record)}"


def _told_in_a_line(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A bug in a callback: the loop goes on, the log has a line, the traceback is for debug."""
    error = context.get("exception")
    if isinstance(error, RuntimeError) and _TOO_LATE in str(error):
        _log.debug("where", exc_info=error)
        return
    what = error or context.get("task") or context.get("handle")
    _log.error("a bug in edged: %s: %r", context.get("message", "in a callback"), what)
    _log.debug("where", exc_info=error)
