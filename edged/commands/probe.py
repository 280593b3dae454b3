"""``edged probe URL``: each line measured once, every phase apart."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path as File

from rich.table import Table
from rich.text import Text

from edged.admin.text import ms, percent
from edged.cli import DEFAULT_CONFIG
from edged.commands.console import console
from edged.config import Config, ConfigError, load
from edged.config_checks import url_host
from edged.config_file import split_url
from edged.dialer import LineDialer
from edged.failure import Failed
from edged.mistakes import nearest
from policies.model import Carrier, Endpoint, Line, Outcome, Path, Sample
from probes.http import HttpProbe, HttpReport
from probes.icmp import IcmpProbe
from probes.quic import QuicProbe, QuicReport

ECHOES = 5
ECHO_GAP_S = 0.1
QUIC_TIMEOUT_S = 3.0
"""Where UDP is blocked, nothing says so."""


@dataclass(frozen=True, slots=True)
class Row:
    """What was found out over one line. Times in seconds; ``None``: did not happen."""

    line: str
    http: HttpReport
    echoes: int
    replies: int
    icmp_min_s: float | None
    icmp_avg_s: float | None
    icmp_note: str
    quic: QuicReport | None
    """``None``: the URL is not https."""


def probe(
    url: str,
    lines: Sequence[str] | None,
    config_file: str | None,
    *,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Measure and print. Raises `Failed` if no line got an answer."""
    config = _config(config_file)
    chosen = _lines(config, lines)
    endpoint, target = _endpoint(url)
    if config is not None:
        endpoint = replace(endpoint, address=_address(config, endpoint))
    ca_file = str(config.ca_file) if config and config.ca_file else None
    rows = asyncio.run(_measure_all(chosen, endpoint, target, ca_file, timeout_s))
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=2, default=str))
    else:
        _print(rows)
    if all(row.http.status is None for row in rows):
        raise Failed(f"no line got an answer from {url}")
    return 0


def _config(file: str | None) -> Config | None:
    """The configuration whose lines are meant; ``None``: there is none, which is fine."""
    if file is None and not File(DEFAULT_CONFIG).exists():
        return None
    try:
        return load(file or DEFAULT_CONFIG)
    except ConfigError as error:
        count = len(error.mistakes)
        more = f" (and {count - 1} more; see edged check)" if count > 1 else ""
        raise Failed(f"{error.mistakes[0]}{more}") from None


def _lines(config: Config | None, names: Sequence[str] | None) -> Sequence[Line]:
    known = {line.name: line for line in config.topology.lines} if config else {}
    if not names:
        return list(known.values()) or [Line("default")]
    for name in names:
        if name not in known:
            close = nearest(name, known)
            hint = f"; did you mean {close!r}?" if close else ""
            there = f"lines: {', '.join(known)}" if known else "give a configuration with -c"
            raise Failed(f"no line is named {name!r}{hint} ({there})", 2)
    return [known[name] for name in names]


def _endpoint(text: str) -> tuple[Endpoint, str]:
    """The endpoint and the request target that a URL means."""
    where, question, query = text.partition("?")
    try:
        url = split_url(where if "://" in where else f"https://{where}")
    except ValueError as error:
        raise Failed(f"{where}: {error}", 2) from None
    secure = url.scheme == "https"
    protocols = (Carrier.H3, Carrier.H2, Carrier.H1) if secure else (Carrier.H1,)
    port = url.port or (443 if secure else 80)
    endpoint = Endpoint("probe", "url", url.scheme, url_host(url), port, protocols=protocols)
    return endpoint, (url.path or "/") + question + query


def _address(config: Config, endpoint: Endpoint) -> str | None:
    """Where the configuration says that this host is; ``None``: DNS knows."""
    there = (endpoint.host, endpoint.port)
    for known in config.topology.endpoints:
        if (known.host, known.port) == there and known.address is not None:
            return known.address
    return None


async def _measure_all(
    lines: Sequence[Line], endpoint: Endpoint, target: str, ca_file: str | None, timeout_s: float
) -> list[Row]:
    warnings: list[str] = []
    dialer = LineDialer()
    icmp = IcmpProbe(dialer, warn=warnings.append)
    http = HttpProbe(dialer, ca_file=ca_file, target=lambda _: target)
    quic = QuicProbe(dialer, ca_file=ca_file) if endpoint.scheme == "https" else None
    try:
        return await asyncio.gather(
            *(
                _measure(Path(line, endpoint), http, icmp, quic, warnings, timeout_s)
                for line in lines
            )
        )
    finally:
        await http.close()
        await icmp.close()
        await dialer.close()


async def _measure(
    path: Path,
    http: HttpProbe,
    icmp: IcmpProbe,
    quic: QuicProbe | None,
    warnings: list[str],
    timeout_s: float,
) -> Row:
    report, echoes, datagrams = await asyncio.gather(
        http.measure(path, timeout_s=timeout_s, fresh=True),
        _echo(path, icmp, timeout_s),
        _inspect(path, quic, min(QUIC_TIMEOUT_S, timeout_s)),
    )
    times = [sample.rtt_s for sample in echoes if sample.rtt_s is not None]
    note = ""
    if icmp.permitted is False:
        note = warnings[0] if warnings else "not permitted"
    elif echoes and not times:
        note = echoes[-1].outcome
    return Row(
        line=path.line.name,
        http=report,
        echoes=len(echoes),
        replies=len(times),
        icmp_min_s=min(times, default=None),
        icmp_avg_s=sum(times) / len(times) if times else None,
        icmp_note=note,
        quic=datagrams,
    )


async def _inspect(path: Path, quic: QuicProbe | None, timeout_s: float) -> QuicReport | None:
    return None if quic is None else await quic.inspect(path, timeout_s=timeout_s)


async def _echo(path: Path, icmp: IcmpProbe, timeout_s: float) -> list[Sample]:
    samples: list[Sample] = []
    wait_s = min(1.0, timeout_s)
    for turn in range(ECHOES):
        if turn:
            await asyncio.sleep(ECHO_GAP_S)
        samples += await icmp.run(path, timeout_s=wait_s)
    return samples


_COLUMNS = (
    *("line", "address", "dns", "connect", "tls", "first byte", "answer"),
    *("icmp least / mean", "quic"),
)


def _print(rows: Sequence[Row]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in _COLUMNS:
        table.add_column(column)
    for row in rows:
        http = row.http
        answer = f"{http.status} {http.http_version}" if http.status else http.outcome.value
        table.add_row(
            row.line,
            http.peer[0] if http.peer else "-",
            _s(http.dns_s),
            _s(http.connect_s) + (f" ({http.syn_lost} SYN lost)" if http.syn_lost else ""),
            _s(http.tls_s),
            _s(http.first_byte_s),
            Text(answer, style="green" if http.outcome.ok else "red"),
            _icmp(row),
            _quic(row.quic),
        )
    output = console()
    output.print(table)
    for row in rows:
        quic = "" if row.quic is None or row.quic.outcome is Outcome.DNS else row.quic.detail
        for text in dict.fromkeys((row.http.detail, row.icmp_note, quic)):
            if " " in text:  # a mere outcome stands in the table
                output.print(Text(f"{row.line}: {text}", style="dim"))


def _icmp(row: Row) -> str:
    if not row.echoes:
        return "-"
    lost = percent(1 - row.replies / row.echoes)
    return f"{_s(row.icmp_min_s)} / {_s(row.icmp_avg_s)}, {lost} lost" if row.replies else "silent"


def _quic(report: QuicReport | None) -> str:
    if report is None:
        return "-"
    if report.handshake_s is None:
        return report.outcome.value
    text = _s(report.handshake_s)
    if report.ping_rtt_s is not None:
        text += f", ping {_s(report.ping_rtt_s)}"
    if report.early_data_offered:
        text += ", 0-RTT" if report.early_data_accepted else ", 0-RTT offered but refused"
    return text


def _s(seconds: float | None) -> str:
    return ms(None if seconds is None else seconds * 1e3)
