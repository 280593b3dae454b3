"""HTTP GET to an endpoint over a line: DNS, connect, TLS and first byte, each apart.

One httpx client a path keeps its connection, so that most runs cost one small request. What a
fresh connection shows on the way (TCP, TLS) becomes samples of its own.
"""

from __future__ import annotations

import asyncio
import ssl
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from policies.model import Kind, Outcome, Path, Sample
from probes.base import Dialer, DialError
from probes.transport import LineTransport, trust

BODY_BYTES = 4096
"""A longer body is broken off: it is the endpoint's answer that is wanted, not its page."""


@dataclass(slots=True)
class HttpReport:
    """One run, phase by phase. ``None``: that phase did not happen (again)."""

    path: str
    url: str
    sent_at: float
    outcome: Outcome = Outcome.OK
    detail: str = ""
    """What went wrong and what to do, for people."""
    reused: bool = False
    """The request went out on a connection that was open already."""
    peer: tuple[str, int] | None = None
    dns_s: float | None = None
    connect_s: float | None = None
    """By the kernel's clock where it tells."""
    syn_lost: int = 0
    tls_s: float | None = None
    tls_version: str | None = None
    first_byte_s: float | None = None
    """Request written to response head; holds the endpoint's thinking."""
    total_s: float | None = None
    status: int | None = None
    http_version: str | None = None
    retry_after_s: float | None = None

    def samples(self) -> list[Sample]:
        """What the decider is to know of this run."""
        if self.outcome is Outcome.LOCAL:
            return []
        found: list[Sample] = []
        begin = self.sent_at
        if self.connect_s is not None:
            found.append(
                Sample(
                    self.path,
                    Kind.TCP,
                    begin,
                    self.connect_s if not self.syn_lost else None,
                    packets_sent=1 + self.syn_lost,
                    packets_lost=self.syn_lost,
                )
            )
        if self.tls_s is not None:
            trips = 1 if self.tls_version == "TLSv1.3" else 2
            found.append(Sample(self.path, Kind.TLS, begin, self.tls_s / trips))
        if self.outcome is Outcome.OK or self.first_byte_s is not None:
            found.append(
                Sample(
                    self.path,
                    Kind.HTTP,
                    begin,
                    self.first_byte_s,
                    self.outcome,
                    retry_after_s=self.retry_after_s,
                )
            )
        else:
            kind = self._failed_kind()
            found.append(Sample(self.path, kind, begin, None, self.outcome, detail=self.detail))
        return found

    def _failed_kind(self) -> Kind:
        if self.reused or self.tls_s is not None:
            return Kind.HTTP
        if self.connect_s is None:
            return Kind.TCP
        return Kind.TLS if self.outcome is Outcome.TLS else Kind.HTTP


class _Timeline:
    """httpcore's trace events of one request, with their times."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.at: dict[str, float] = {}
        self.stream: Any = None

    async def __call__(self, event: str, info: dict[str, Any]) -> None:
        # The version's prefix (http11, http2) does not matter here.
        name = event.partition(".")[2]
        self.at.setdefault(name, self._clock())
        if name == "start_tls.complete":
            self.stream = info.get("return_value")

    def between(self, start: str, end: str) -> float | None:
        """Seconds from one event to another; ``None`` unless both happened."""
        if start not in self.at or end not in self.at:
            return None
        return self.at[end] - self.at[start]


class HttpProbe:
    """The HTTP probe of all paths. `close` it in the loop that used it."""

    kind = Kind.HTTP
    cost_bytes = 8192
    """A fresh TLS connection with its certificates, and a small page; a warm one takes 1 KB."""

    def __init__(
        self,
        dialer: Dialer,
        *,
        ca_file: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        target: Callable[[Path], str] = lambda _: "/",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``target`` gives the origin-form target (`Cadence.http_path`).

        ``ssl_context`` must not be shared with others: httpcore sets its ALPN list.
        Raises `OSError` when ``ca_file`` is unreadable.
        """
        self._dialer = dialer
        self._context = ssl_context or trust(ca_file)
        self._target = target
        self._clock = clock
        self._clients: dict[str, tuple[Path, httpx.AsyncClient, LineTransport]] = {}
        """The kept ones; a run takes its path's, and puts it back. One that begins while another
        hangs has a connection of its own: the line may be back, and the other not see it."""

    async def run(self, path: Path, *, timeout_s: float) -> Sequence[Sample]:
        """One GET over the path's kept connection, or over a new one if there is none."""
        return (await self.measure(path, timeout_s=timeout_s)).samples()

    async def measure(self, path: Path, *, timeout_s: float, fresh: bool = False) -> HttpReport:
        """The same with all there is to know; ``fresh`` insists on a new connection."""
        if fresh:
            await self._drop(path)
        started = self._clock()
        report = await self._once(path, timeout_s)
        if report.reused and report.outcome in (Outcome.RESET, Outcome.PROTOCOL):
            # The server had ended the idle connection: that says nothing of the path.
            left_s = max(0.1, timeout_s - (self._clock() - started))
            report = await self._once(path, left_s)
        return report

    async def retain(self, paths: Iterable[Path]) -> None:
        """Close the clients of paths that are gone or changed (after a reload)."""
        keep = {path.name: path for path in paths}
        for name in [n for n, (path, _, _) in self._clients.items() if keep.get(n) != path]:
            await self._clients.pop(name)[1].aclose()

    async def close(self) -> None:
        """Close all clients."""
        await self.retain(())

    async def _drop(self, path: Path) -> None:
        held = self._clients.pop(path.name, None)
        if held is not None:
            await held[1].aclose()

    async def _take(self, path: Path) -> tuple[httpx.AsyncClient, LineTransport]:
        held = self._clients.pop(path.name, None)
        if held is not None and held[0] != path:
            await held[1].aclose()
            held = None
        if held is None:
            transport = LineTransport(
                self._dialer,
                path.line,
                ssl_context=self._context,
                address=path.endpoint.address,
            )
            client = httpx.AsyncClient(
                transport=transport,
                trust_env=False,
                headers={"user-agent": "edged-probe", "accept": "*/*"},
            )
            held = (path, client, transport)
        return held[1], held[2]

    async def _once(self, path: Path, timeout_s: float) -> HttpReport:
        endpoint = path.endpoint
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        target = endpoint.base_path + self._target(path)
        url = f"{endpoint.scheme}://{host}:{endpoint.port}{target}"
        client, transport = await self._take(path)
        transport.backend.dialed = None
        timeline = _Timeline(self._clock)
        report = HttpReport(path.name, url, self._clock())
        keep = False
        try:
            async with asyncio.timeout(timeout_s):
                keep = await self._get(client, url, timeout_s, timeline, report)
        except (TimeoutError, DialError, *_HTTPCORE) as error:
            outcome, detail = _ended(error, endpoint.host, timeout_s, timeline)
            _fail(report, outcome, detail)
            _let_go(error)
        finally:
            report.total_s = self._clock() - report.sent_at
            _fill(report, timeline, transport)
            if keep and path.name not in self._clients:
                self._clients[path.name] = (path, client, transport)
            else:
                await client.aclose()
        return report

    async def _get(
        self,
        client: httpx.AsyncClient,
        url: str,
        timeout_s: float,
        timeline: _Timeline,
        report: HttpReport,
    ) -> bool:
        """Send the request, read the head and a little of the body; whether to keep the
        connection."""
        # A little earlier than the whole: whoever connects knows what was waited for.
        request = client.build_request(
            "GET", url, timeout=0.95 * timeout_s, extensions={"trace": timeline}
        )
        response = await client.send(request, stream=True)
        try:
            report.status = response.status_code
            report.http_version = response.http_version
            report.outcome, report.retry_after_s = _judge(response)
            if not report.outcome.ok:
                report.detail = f"the endpoint answered {response.status_code}"
            read = 0
            async for part in response.aiter_raw():
                read += len(part)
                if read > BODY_BYTES:
                    return False
        finally:
            await response.aclose()
        return True


def _judge(response: httpx.Response) -> tuple[Outcome, float | None]:
    """Any status below 500 is an answer; 429 and 503 with Retry-After say "later"."""
    status = response.status_code
    after = response.headers.get("retry-after", "")
    after_s = float(after) if after.isdecimal() else None
    if status == 429 or (status == 503 and after):
        return Outcome.BUSY, after_s
    return (Outcome.OK if status < 500 else Outcome.HTTP_ERROR), None


def _tls_text(host: str, error: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in error:
        return f"{error}: if {host} has an authority of its own, name it in tls.ca_file"
    return f"TLS handshake with {host} failed: {error}"


_HTTPCORE = (httpcore.TimeoutException, httpcore.ProtocolError, httpcore.NetworkError)


def _ended(
    error: Exception, host: str, timeout_s: float, timeline: _Timeline
) -> tuple[Outcome, str]:
    """What came of a request that ended with ``error``, and the words for it."""
    if isinstance(error, DialError):
        return error.outcome, error.detail
    if isinstance(error, TimeoutError):
        return Outcome.TIMEOUT, f"no answer within {timeout_s:g} s"
    text = str(error)
    if isinstance(error, httpcore.TimeoutException):
        return Outcome.TIMEOUT, text
    if isinstance(error, httpcore.ProtocolError):
        ended = text.startswith("Server disconnected")
        return Outcome.RESET if ended else Outcome.PROTOCOL, text
    if "start_tls.failed" in timeline.at:
        return Outcome.TLS, _tls_text(host, text)
    return Outcome.RESET, text or "the connection was reset"


def _let_go(error: BaseException | None) -> None:
    """Clear the frames that ``error`` came through. Those of httpcore keep it in a variable, and
    such a cycle keeps a TLS connection with its buffers until the garbage collector comes by.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__context__


def _fail(report: HttpReport, outcome: Outcome, detail: str) -> None:
    # A head that arrived was the answer, whatever became of the body behind it.
    if report.status is None:
        report.outcome, report.detail = outcome, detail


def _fill(report: HttpReport, timeline: _Timeline, transport: LineTransport) -> None:
    report.reused = "connect_tcp.started" not in timeline.at
    dialed = transport.backend.dialed
    if dialed is not None and not report.reused:
        report.peer = dialed.peer
        report.dns_s = dialed.dns_s
        report.connect_s = dialed.rtt_s if dialed.rtt_s is not None else dialed.connect_s
        report.syn_lost = dialed.syn_lost
    report.tls_s = timeline.between("start_tls.started", "start_tls.complete")
    if timeline.stream is not None:
        tls = timeline.stream.get_extra_info("ssl_object")
        report.tls_version = tls.version() if tls is not None else None
    report.first_byte_s = timeline.between(
        "send_request_headers.started", "receive_response_headers.complete"
    )
