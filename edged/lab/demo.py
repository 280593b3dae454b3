"""``edged demo``: the lab, the daemon and traffic in one process, and a line that dies silently.

After a while the line in use is blackholed; the view shows when requests complete over another
one; the line comes back; the view shows when requests return to it. Without ``--seconds`` this
repeats until Ctrl-C. The JSON of ``--json``:

``requests``, ``failed``, ``longest_s``  small JSON requests; a request fails unless its answer is
complete and right. ``failover_gap_s``  from the blackhole to the next request completed over
another line. ``detected_s``  from the blackhole to the line's paths DOWN. ``returned_s``  from the
line's return to the next request completed over it (null: not within the run). ``streams``,
``streams_broken``, ``tokens``, ``tokens_lost``  token streams; on a direct path a stream cannot
outlive its line, so one in flight on it breaks, is told apart from failed requests, and its missing
words are counted.

The exit status is 0 only if no request failed and the failover was seen.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from edged.config import load
from edged.daemon import Daemon
from edged.failure import Failed
from edged.lab.lab import HOST, PREFIX, Lab
from edged.lab.traffic import Done, Traffic
from edged.lab.view import View
from edged.upstream.tls import TlsConfigError
from policies.model import Verdict

_PROXY, _ADMIN = ("127.0.0.1", 7070), ("127.0.0.1", 7071)
_POLL_S = 0.005
_REFRESH_S = 0.25
_STATUS_S = 5.0
_PATIENCE_S = 10.0
_REST_S = 30.0
_SETTLED = 20


@dataclass(frozen=True, slots=True)
class Schedule:
    """When what happens, in seconds."""

    warm_up_s: float = 1.0
    """First measurements, before traffic."""
    settle_s: float = 8.0
    dark_s: float = 7.0
    total_s: float | None = None

    @classmethod
    def within(cls, total_s: float | None) -> Schedule:
        """A schedule that shows everything in the time there is."""
        if total_s is None:
            return cls()
        return cls(
            warm_up_s=min(1.0, 0.05 * total_s),
            settle_s=min(8.0, 0.2 * total_s),
            dark_s=min(7.0, 0.2 * total_s),
            total_s=total_s,
        )


@dataclass(slots=True)
class Result:
    """What the script saw of the first failover."""

    line: str | None = None
    moved_to: str | None = None
    failover_gap_s: float | None = None
    detected_s: float | None = None
    returned_s: float | None = None


def run_demo(*, seconds: float | None, as_json: bool) -> int:
    """Run the demo, for ``seconds`` or until Ctrl-C; returns the exit status."""
    live = sys.stdout.isatty() and not as_json
    try:
        return uvloop.run(_demo(seconds, as_json, live))
    except BrokenPipeError:
        raise
    except (OSError, TlsConfigError) as error:
        raise Failed(f"the demo cannot start: {error}") from None


async def _demo(seconds: float | None, as_json: bool, live: bool) -> int:
    async with Lab() as lab:
        proxy, admin = (_free(*wanted) for wanted in (_PROXY, _ADMIN))
        file = lab.write_config(proxy=proxy, admin=admin)
        _log_to(lab.directory / "edged.log")
        async with Daemon(load(file)) as daemon:
            return await Show(lab, daemon, proxy, admin).play(seconds, as_json, live)


def _log_to(file: Path) -> None:
    """The daemon's log beside its configuration: the terminal belongs to the view."""
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("edged").setLevel(logging.INFO)


def _free(address: str, port: int) -> str:
    """The wanted port, or a free one and a message when it is taken."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
        except OSError:
            sock.bind((address, 0))
            print(f"port {port} is taken: using {sock.getsockname()[1]} instead")
        return f"{address}:{sock.getsockname()[1]}"


class Show:
    """One performance."""

    def __init__(self, lab: Lab, daemon: Daemon, proxy: str, admin: str) -> None:
        self._lab = lab
        self._daemon = daemon
        self._hints = _hints(f"http://{proxy}", admin, lab)
        self._traffic = Traffic(f"http://{proxy}{PREFIX}")
        self._loop = asyncio.get_running_loop()
        self._start = self._loop.time()
        self._view = View(lab, daemon.table, self._traffic.tally, self._hints, live=False)
        self.result = Result()

    async def play(self, seconds: float | None, as_json: bool, live: bool) -> int:
        """Everything from the first request to the summary; returns the exit status."""
        self._view = View(
            self._lab, self._daemon.table, self._traffic.tally, self._hints, live=live
        )
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._loop.add_signal_handler(number, stopped.set)
        schedule = Schedule.within(seconds)
        with self._view:
            if not self._lab.kernel_silence:
                self._tell(
                    "this kernel refuses filters and keys: dead lines stall in user space only"
                )
            helpers = [
                self._loop.create_task(self._refresh(live)),
                self._loop.create_task(self._script(schedule)),
            ]
            end = self._loop.create_task(stopped.wait())
            # A helper ends only by an error, as when nobody reads the output any more.
            await asyncio.wait(
                [end, *helpers], timeout=schedule.total_s, return_when=asyncio.FIRST_COMPLETED
            )
            for task in (end, *helpers):
                task.cancel()
            done = await asyncio.gather(*helpers, return_exceptions=True)
            for line in self._lab.lines:
                self._lab.lines.restore(line.name)
            await self._traffic.stop(_PATIENCE_S)
            self._view.refresh()
        for error in done:
            if isinstance(error, Exception):
                raise error
        return self._summary(as_json)

    def _tell(self, text: str) -> None:
        self._view.event(self._loop.time() - self._start, text)

    async def _refresh(self, live: bool) -> None:
        while True:
            await asyncio.sleep(_REFRESH_S if live else _STATUS_S)
            self._view.refresh()
            if not live:
                self._tell(self._view.status_line())

    async def _script(self, schedule: Schedule) -> None:
        await asyncio.sleep(schedule.warm_up_s)
        self._traffic.start()
        await asyncio.sleep(schedule.settle_s)
        while True:
            result = await self._failover(schedule)
            if self.result.line is None:
                self.result = result
            await asyncio.sleep(_REST_S)

    async def _failover(self, schedule: Schedule) -> Result:
        await self._until(lambda: len(self._traffic.tally.done) >= _SETTLED)
        line = self._line_in_use()
        result = Result(line)
        if self.result.line is None:
            self.result = result  # so that an end in between still tells what was seen
        self._lab.lines.blackhole(line)
        dead_at = self._loop.time()
        self._tell(f"{line}, the line in use, is silently blackholed")
        detection = self._loop.create_task(self._detection(line, dead_at, result))
        done = await self._traffic.completion(lambda d: self._name(d) != line)
        result.failover_gap_s = done.ended_at - dead_at
        result.moved_to = self._name(done)
        gap_ms = result.failover_gap_s * 1e3
        self._tell(f"failover: a request completed over {result.moved_to} after {gap_ms:.0f} ms")
        await asyncio.sleep(max(0.0, dead_at + schedule.dark_s - self._loop.time()))
        detection.cancel()
        self._lab.lines.restore(line)
        back_at = self._loop.time()
        self._tell(f"{line} is back")
        try:
            async with asyncio.timeout(_REST_S):
                done = await self._traffic.completion(lambda d: self._name(d) == line)
        except TimeoutError:
            self._tell(f"no return: {self._name(self._traffic.tally.done[-1])} serves better now")
            return result
        result.returned_s = done.ended_at - back_at
        self._tell(f"return: a request completed over {line} after {result.returned_s:.2f} s")
        return result

    async def _detection(self, line: str, dead_at: float, result: Result) -> None:
        def down() -> bool:
            states = self._daemon.table.snapshot.paths.values()
            verdicts = [s.verdict for s in states if s.path.line.name == line]
            return bool(verdicts) and all(v is Verdict.DOWN for v in verdicts)

        await self._until(down)
        result.detected_s = self._loop.time() - dead_at
        self._tell(f"verdict: all paths of {line} are DOWN after {result.detected_s * 1e3:.0f} ms")

    def _line_in_use(self) -> str:
        recent = list(self._traffic.tally.done)[-_SETTLED:]
        return Counter(self._name(d) for d in recent).most_common(1)[0][0]

    def _name(self, done: Done) -> str:
        return self._lab.lines.of(done.source).name

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110  what is awaited has no event of its own
            await asyncio.sleep(_POLL_S)

    def _summary(self, as_json: bool) -> int:
        tally, result = self._traffic.tally, self.result
        document = {
            "requests": tally.requests,
            "failed": tally.failed,
            "longest_s": round(tally.longest_s, 3),
            "failover_gap_s": _rounded(result.failover_gap_s),
            "detected_s": _rounded(result.detected_s),
            "returned_s": _rounded(result.returned_s),
            "line": result.line,
            "moved_to": result.moved_to,
            "streams": tally.streams,
            "streams_broken": tally.streams_broken,
            "tokens": tally.tokens,
            "tokens_lost": tally.tokens_lost,
            "errors": dict(tally.errors),
            "kernel_silence": self._lab.kernel_silence,
        }
        print(json.dumps(document) if as_json else self._sentence())
        if (fault := self._fault()) is not None:
            raise Failed(fault)
        return 0

    def _fault(self) -> str | None:
        """Why the status is not 0."""
        tally = self._traffic.tally
        if not tally.requests:
            return "the demo ended before its first request"
        if tally.failed:
            said = ", ".join(f"{error} {count}" for error, count in tally.errors.items())
            return f"{tally.failed} of {tally.requests} requests failed: {said}"
        if self.result.failover_gap_s is None:
            return "the demo ended before a failover was seen"
        return None

    def _sentence(self) -> str:
        tally, gap_s = self._traffic.tally, self.result.failover_gap_s
        gap = "no failover was seen"
        if gap_s is not None:
            gap = f"failover after {gap_s * 1e3:.0f} ms"
        return (
            f"{tally.requests} requests, {tally.failed} failed, longest {tally.longest_s:.2f} s; "
            f"{gap}; {tally.streams} streams, {tally.streams_broken} broken with their line, "
            f"{tally.tokens_lost} of {tally.tokens + tally.tokens_lost} tokens lost"
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _hints(base: str, admin: str, lab: Lab) -> list[str]:
    edged, python = _own_command(), _shown(sys.executable, "python")
    chat = '{"model":"lab","messages":[{"role":"user","content":"hi"}],"stream":true}'
    hints = [
        f"curl {base}{PREFIX}/echo",
        f"curl -N {base}{PREFIX}/v1/chat/completions -d '{chat}'",
        f"curl -o /dev/null {base}{PREFIX}/bytes/1000000 -w '%{{speed_download}} bytes/s\\n'",
        f"curl -x {base} --cacert {lab.ca_file} https://{HOST}/echo      # CONNECT",
        f"curl http://{admin}/metrics",
    ]
    if importlib.util.find_spec("openai"):
        hints.append(
            f"{python} -c \"import openai; print(openai.OpenAI(api_key='x', "
            f"base_url='{base}{PREFIX}/v1').chat.completions.create(model='lab', "
            "messages=[{'role': 'user', 'content': 'hi'}]).choices[0].message.content)\""
        )
    return [
        *hints,
        f"{edged} status --admin {admin}",
        f"{edged} why {PREFIX}/echo --admin {admin}",
        f"{edged} drill blackhole {next(iter(lab.lines)).name} --for 5s --admin {admin}",
        f"less {lab.directory}/edged.yaml {lab.directory}/edged.log",
    ]


def _own_command() -> str:
    """How this command can be called again from where the user stands."""
    called = Path(sys.argv[0])
    if called.name.endswith(".py") or not os.access(called, os.X_OK):
        return f"{_shown(sys.executable, 'python')} -m edged"
    return _shown(str(called), called.name)


def _shown(program: str, name: str) -> str:
    """``name`` if the shell would find this very program by it, else its path, the short one."""
    absolute = os.path.abspath(program)  # not resolved: a virtual environment is links
    found = shutil.which(name)
    if found is not None and os.path.abspath(found) == absolute:
        return name
    relative = os.path.relpath(absolute)
    return shlex.quote(absolute if relative.startswith("..") else relative)
