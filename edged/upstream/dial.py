"""One dial of a pool: h3 and TCP raced as `edged.upstream.carriers` plans it.

The first connection wins. When h3 wins, TCP is given up; when TCP wins, h3 may still come (then
the pool has it as well) or fail (then it is held back on this line for a while).
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from edged.upstream.carriers import Carriers, Plan
from edged.upstream.connection import Connection, Connector, Owner
from policies.model import Carrier, Outcome, Path
from probes.base import DialError


class Dials(Protocol):
    """Who ordered a dial."""

    def connected(self, dial: Dial, connection: Connection) -> None:
        """A connection is ready; a dial may bring two."""

    def dial_failed(self, dial: Dial, error: DialError) -> None:
        """It brought none; called once, after the last leg failed."""


class Dial:
    """A dial in progress."""

    def __init__(
        self,
        dials: Dials,
        owner: Owner,
        path: Path,
        *,
        tcp: Connector,
        h3: Connector | None,
        carriers: Carriers,
        timeout_s: float,
        expected: int,
        early_data: bool,
        upgrade: bool,
        only: Carrier | None = None,
        first: Carrier | None = None,
        hurried: bool = False,
    ) -> None:
        """``expected`` is the number of waiters that it was started for; ``owner`` gets the
        connections; ``only``, ``first`` and ``hurried`` are `Carriers.plan`'s."""
        self.expected = expected
        self.upgrade = upgrade
        self.only = only
        self._first = first
        self._hurried = hurried
        self._dials = dials
        self._owner = owner
        self._path = path
        self._tcp = tcp
        self._h3 = h3
        self._carriers = carriers
        self.timeout_s = timeout_s
        self.began_at = 0.0
        self._early_data = early_data
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._h3_over = asyncio.Event()
        self._tcp_leg: asyncio.Task[None] | None = None
        self._won = False
        self._error: DialError | None = None

    def start(self) -> None:
        """Begin; nothing is called back before a later loop turn."""
        self.began_at = self._loop.time()
        plan = self._carriers.plan(
            self._path,
            self._loop.time(),
            upgrade=self.upgrade,
            only=self.only,
            first=self._first,
            hurried=self._hurried,
        )
        if plan.h3 and self._h3 is not None:
            self._spawn(self._run_h3(self._h3))
        if plan.tcp:
            self._tcp_leg = self._spawn(self._run_tcp(plan))

    def cancel(self) -> None:
        """Stop; nothing is called back any more."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        self._tcp_leg = None

    def _spawn(self, leg: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(leg)
        self._tasks.add(task)
        task.add_done_callback(self._leg_over)
        return task

    def _leg_over(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task is self._tcp_leg:
            self._tcp_leg = None  # what it was cancelled with may refer to us
        if task.cancelled() or (error := task.exception()) is None:
            return
        # A bug: it is told, and who waits for this dial need not wait for ever.
        self._h3_over.set()
        told = {"message": "a dial ended", "exception": error}
        self._loop.call_exception_handler(told)
        self._failed(DialError(Outcome.LOCAL, "a bug ended the dial"), last=not self._tasks)

    async def _run_h3(self, h3: Connector) -> None:
        began_at = self._loop.time()
        try:
            connection = await h3.connect(
                self._path, self._owner, timeout_s=self.timeout_s, early_data=self._early_data
            )
        except DialError as error:
            self._h3_over.set()
            if error.outcome not in (Outcome.DNS, Outcome.NO_NAME):
                self._carriers.h3_failed(self._path, self._loop.time())
            self._failed(error, last=self._tcp_leg is None or self._tcp_leg.done())
            return
        if not connection.early:  # else nothing has been heard yet: the pool will know
            self._carriers.h3_worked(self._path, self._loop.time() - began_at)
        if self._tcp_leg is not None and not self._won:
            self._tcp_leg.cancel()
        self._connected(connection)

    async def _run_tcp(self, plan: Plan) -> None:
        began_at = self._loop.time()
        if plan.h3 and plan.head_start_s:
            try:
                async with asyncio.timeout(plan.head_start_s):
                    await self._h3_over.wait()
            except TimeoutError:
                pass  # the head start is over
        left_s = self.timeout_s - (self._loop.time() - began_at)
        try:
            connection = await self._tcp.connect(
                self._path,
                self._owner,
                timeout_s=left_s,
                upgrade=self.upgrade,
                only=self.only,
            )
        except DialError as error:
            self._failed(error, last=not plan.h3 or self._h3_over.is_set())
            return
        if self._path.endpoint.scheme == "https" and not self.upgrade and self.only is None:
            self._carriers.agreed(self._path, connection.carrier, self._loop.time())
        self._connected(connection)

    def _connected(self, connection: Connection) -> None:
        self._won = True
        self._dials.connected(self, connection)

    def _failed(self, error: DialError, *, last: bool) -> None:
        # Its traceback holds the leg's frame, and that us: no cycle may keep sockets and buffers.
        self._error = self._error or error.with_traceback(None)
        if last and not self._won:
            self._dials.dial_failed(self, self._error)
