"""How every connector gets its socket: what is dialled, and what a dial that failed says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Protocol

from edged.upstream.connection import Report
from policies.model import Kind, Line, Outcome, Path, Sample
from probes.base import Dialed, DialError


class Connect(Protocol):
    """`probes.base.Dialer.connect_tcp` or `connect_udp`."""

    async def __call__(
        self, line: Line, host: str, port: int, *, address: str | None = None, timeout_s: float
    ) -> Dialed:
        """Raises `DialError`."""


@contextmanager
def reporting(report: Report, kind: Kind, path: Path) -> Iterator[None]:
    """A `DialError` in here is reported as a lost sample of ``kind``, unless it is this host's own
    fault."""
    sent_at = monotonic()
    try:
        yield
    except DialError as error:
        if error.outcome is not Outcome.LOCAL:
            report(Sample(path.name, kind, sent_at, None, error.outcome, detail=error.detail))
        raise


async def dial(
    connect: Connect, report: Report, kind: Kind, path: Path, timeout_s: float
) -> Dialed:
    """A socket to the endpoint of ``path`` over its line. Failures are reported.

    Raises `DialError`.
    """
    endpoint = path.endpoint
    with reporting(report, kind, path):
        return await connect(
            path.line,
            endpoint.host,
            endpoint.port,
            address=endpoint.address,
            timeout_s=timeout_s,
        )
