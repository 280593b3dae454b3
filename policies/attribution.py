"""Whose fault is it: how the evidence on a line becomes its verdict and those of its paths.

The rules are the table in the head of `policies.detector`; this file applies them to one line at a
time, when something on it fell silent, failed or was heard in doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from policies.ledger import (
    ANY,
    DATA,
    END,
    LATE_ANSWERS,
    OVER_TCP,
    REACH,
    SYN,
    TCP_CARRIERS,
    UDP,
    UDP_CARRIERS,
    Finding,
    LineState,
    PathState,
    Peers,
    witness,
)
from policies.model import Blame, Carrier, CarrierChange, Change, Outcome, Verdict
from policies.silence import Channel

ERRORS_SUSPECT: Final = 2
ERRORS_DOWN: Final = 3
WITNESS_S: Final = 60.0
"""A path without a slot for so long is not asked about its line."""
REPAIR_S: Final = 0.5
REPAIR_RTTS: Final = 3.0
"""TCP repairs a loss, that of a repetition included, in the greater of both."""
QUEUED_S: Final = 5.0
"""What is queued on a connection, 2 MB of a body or so, has left by then."""
_ABOVE: Final = ("", " above ICMP", " of data", " end to end", " of QUIC")


def blocked_carriers(path: PathState, now: float) -> CarrierChange | None:
    """Whether one transport is silent on the path although the other one answers.

    Its silence counts for nothing more until it answers again; unless it is the only one that the
    endpoint speaks: then it is the path that is silent.
    """
    _forget_outage(path)
    if path.blocked or path.udp_only:
        return None
    udp = path.channels[UDP]
    refused = path.error is Outcome.REFUSED and path.errors > 0
    if (
        udp.verdict is Verdict.DOWN
        and not refused
        and path.answered_since(udp.run_sent_at, *OVER_TCP)
    ):
        return _block(path, UDP, UDP_CARRIERS, (UDP,), now)
    for layer in OVER_TCP:
        channel = path.channels[layer]
        silent = channel.verdict is Verdict.DOWN and not _taken(path.channels, layer)
        if silent and udp.proved_at >= channel.run_sent_at:
            return _block(path, layer, TCP_CARRIERS, OVER_TCP, now)
    return None


def _forget_outage(path: PathState) -> None:
    """Where both transports were silent and one is back, the other's silence until then is no sign
    that it is blocked: what is sent from now on will tell.
    """
    for layer in (UDP, *OVER_TCP):
        channel = path.channels[layer]
        if channel.run:
            others = OVER_TCP if layer == UDP else (UDP,)
            back_at = max(owner.channels[n].back_at for owner in (path, path.line) for n in others)
            if channel.run_sent_at < back_at:
                channel.clear()


def _block(
    path: PathState, layer: int, carriers: tuple[Carrier, ...], layers: Sequence[int], now: float
) -> CarrierChange:
    channel = path.channels[layer]
    path.blocked, path.blocked_layer, path.blocked_at = carriers, layer, channel.run_sent_at
    reason = f"{_silence(channel, layer, now)} while the rest answers"
    for number in layers:
        path.channels[number].clear()
        if path.line.channels[number].endpoints == {path.endpoint}:
            path.line.channels[number].clear()
    return CarrierChange(path.name, carriers, True, reason, now)


def judge(
    line: LineState, peers: Peers, now: float, heard: PathState | None, layer: int = ANY
) -> list[Change]:
    """Bring the gates of a line and its paths up to date with the evidence.

    ``heard`` is the path on which an answer of ``layer`` just arrived, ``None`` if none did. One
    that left a run standing answers for earlier times only, and betters nothing.
    Returns what changed to be seen, the worst first.
    """
    for path in line.paths:
        evidence, reason = _own_evidence(path, now)
        if evidence > path.gate.verdict:
            path.gate.worsen(evidence, now)
            path.reason = reason
        elif path is heard and not _stands(path.channels, layer):
            path.gate.better(evidence)
            if evidence is not Verdict.DOWN:
                path.alone = False
        if path.gate.verdict is Verdict.DOWN and not path.alone and _others_heard(path):
            _leave_alone(path)
    _judge_line(line, peers, now, heard, layer)
    changes = [c for p in line.paths if (c := _show(p, peers, now)) is not None]
    changes.sort(key=lambda c: -c.new)
    line.calm = line.is_calm()
    for path in line.paths:
        path.calm = path.is_calm()
    line.doubted = any(
        path.finding.verdict is not Verdict.UP or path.unproven for path in line.paths
    )
    return changes


def _stands(channels: Sequence[Channel], layer: int) -> bool:
    """Whether a run is left that an answer of ``layer`` might have ended."""
    return any(channels[number].run for number in REACH[layer])


def _own_evidence(path: PathState, now: float) -> tuple[Verdict, str]:
    worst, reason = Verdict.UP, ""
    for number, channel in enumerate(path.channels):
        verdict = _weigh(path.channels, number, icmp_alone=Verdict.SUSPECT, udp_only=path.udp_only)
        if verdict > worst:
            worst, reason = verdict, _silence(channel, number, now)
    if now < path.hole_until and worst is Verdict.UP:
        worst, reason = Verdict.SUSPECT, "a connection is stuck: do large packets vanish?"
    if path.late >= LATE_ANSWERS and now < path.late_until and worst is Verdict.UP:
        worst, reason = Verdict.SUSPECT, f"answers come {path.late_s:.2f} s later than they did"
    if path.unproven and worst is Verdict.UP:
        worst, reason = Verdict.SUSPECT, "QUIC is silent, and TCP has not shown yet that it works"
    if path.errors >= ERRORS_SUSPECT:
        verdict = Verdict.DOWN if path.errors >= ERRORS_DOWN else Verdict.SUSPECT
        if verdict > worst:
            worst = verdict
            reason = f"{path.errors} attempts in a row ended with {path.error}"
    return worst, reason


def _weigh(
    channels: Sequence[Channel], number: int, icmp_alone: Verdict, *, udp_only: bool = False
) -> Verdict:
    """What the silence of one channel says in the light of the others."""
    channel = channels[number]
    verdict = channel.verdict
    if verdict is Verdict.UP:
        return verdict
    if not channel.beyond_icmp:
        verdict = min(verdict, icmp_alone)
    since = channel.run_sent_at
    if number == END and channels[DATA].proved_at >= since:
        verdict = min(verdict, _in_order(channel))
    if number == UDP and not udp_only:
        if max(channels[DATA].proved_at, channels[END].proved_at) >= since:
            return Verdict.UP
        return Verdict.SUSPECT if channels[SYN].proved_at >= since else verdict
    if number in OVER_TCP and channels[UDP].proved_at >= since:
        return Verdict.UP
    return verdict


def _taken(channels: Sequence[Channel], number: int) -> bool:
    """Whether TCP passes although nothing answers end to end: data is acknowledged. Answers may be
    held up by a lost segment, or by what is queued before the questions, a large body mostly; for
    longer somebody acknowledges who passes nothing on.
    """
    channel = channels[number]
    lasted_s = channel.run_last_sent_at - channel.run_sent_at
    acknowledged = number == END and channels[DATA].proved_at >= channel.run_sent_at
    return acknowledged and lasted_s < QUEUED_S


def _in_order(channel: Channel) -> Verdict:
    """At most what silence end to end says while data is acknowledged, which shows the line alive.

    TCP hands on in order: one lost packet holds up all answers behind it until it is repaired, and
    a server answers PINGs behind what it has queued. Silence for longer is the path's, unless bytes
    still flow.
    """
    lasted_s = channel.run_last_sent_at - channel.run_sent_at
    repair_s = max(REPAIR_S, REPAIR_RTTS * (channel.rtt_s + channel.late_s))
    if lasted_s < repair_s:
        return Verdict.UP
    return Verdict.SUSPECT if lasted_s < 2 * repair_s or channel.still_receiving else Verdict.DOWN


def _silence(channel: Channel, layer: int, now: float) -> str:
    slots = "slot" if channel.run == 1 else "slots"
    return (
        f"{channel.run} {slots} silent{_ABOVE[layer]} for {now - channel.run_sent_at:.2f} s"
        f" (one each {channel.pace_s:.2g} s, loss {channel.loss:.1%})"
    )


def _leave_alone(path: PathState) -> None:
    path.alone = True
    for channel in path.line.channels:
        if channel.endpoints == {path.endpoint}:
            channel.clear()


def _others_heard(path: PathState) -> bool:
    """Whether the line was heard from others after all that is held against the path, and after
    the path itself, of which samples may tell late.

    Not while the line is DOWN: its first sign of life pardons, it accuses nobody.
    """
    if path.line.gate.verdict is Verdict.DOWN:
        return False
    for own, pooled in zip(path.channels, path.line.channels, strict=True):
        if (
            own.verdict is Verdict.DOWN
            and pooled.heard_at is not None
            and pooled.heard_at > max(own.run_reply_at, own.heard_at or 0.0)
        ):
            return True
    return False


def _judge_line(
    line: LineState, peers: Peers, now: float, heard: PathState | None, layer: int
) -> None:
    evidence, blame, reason, exonerated = _line_evidence(line, peers, now)
    if evidence > line.gate.verdict:
        line.gate.worsen(evidence, now)
        line.blame, line.reason = blame, reason
        line.silent_at = min((c.run_sent_at for c in line.channels if c.run), default=now)
    elif heard is not None and not _stands(line.channels, layer):
        was = line.gate.verdict
        line.gate.better(evidence)
        if was is Verdict.DOWN and line.gate.verdict < was:
            _pardon(line, heard, layer, now)
    elif exonerated and evidence is Verdict.UP:
        line.gate.pardon()
    elif evidence is line.gate.verdict and blame is Blame.LINE and evidence is not Verdict.UP:
        line.blame = blame


def _line_evidence(line: LineState, peers: Peers, now: float) -> tuple[Verdict, Blame, str, bool]:
    """Verdict, blame, reason, and whether the endpoint explains the silence instead."""
    worst, blame, reason, exonerated = Verdict.UP, Blame.LINE, "", False
    for number, channel in enumerate(line.channels):
        single = len(channel.endpoints) == 1
        icmp_alone = Verdict.SUSPECT if single else Verdict.DOWN
        verdict = _weigh(line.channels, number, icmp_alone)
        if verdict is Verdict.UP:
            continue
        whose = Blame.LINE
        if single:
            limit, whose, endpoint_did_it = _single(line, number, peers)
            exonerated = exonerated or endpoint_did_it
            verdict = min(verdict, limit)
        if verdict > worst:
            worst, blame = verdict, whose
            reason = f"line {line.name}: {_silence(channel, number, now)}"
    if worst is not Verdict.DOWN and len(accused := _refused_here_only(line, peers)) > 1:
        worst, blame = Verdict.DOWN, Blame.LINE
        reason = f"line {line.name}: {', '.join(sorted(accused))} fail on it together"
    return worst, blame, reason, exonerated


def _single(line: LineState, layer: int, peers: Peers) -> tuple[Verdict, Blame, bool]:
    """How far one endpoint's silence may convict the line; the blame; whether it is cleared."""
    channel = line.channels[layer]
    (endpoint,) = channel.endpoints
    asked_since = (channel.last_sent_at or 0.0) - WITNESS_S
    silent = next((p for p in line.paths if p.endpoint == endpoint), None)
    others = any(
        p.endpoint != endpoint
        and (sent := p.channels[0].last_sent_at) is not None
        and sent > asked_since
        and witness(p)
        for p in line.paths
    )
    if others:
        down = silent is not None and silent.gate.verdict is Verdict.DOWN
        return (Verdict.SUSPECT if down else Verdict.UP), Blame.UNKNOWN, False
    elsewhere = [p for p in peers.get(endpoint, ()) if p.line is not line]
    if not elsewhere:
        return Verdict.DOWN, Blame.UNKNOWN, False
    worst = max(p.gate.verdict for p in elsewhere)
    if worst is not Verdict.UP:
        # A doubt elsewhere holds a verdict off; it takes none back.
        cleared = worst is Verdict.DOWN or line.gate.verdict is not Verdict.DOWN
        return Verdict.UP, Blame.ENDPOINT, cleared
    if any(p.heard_since(_settled_at(channel), layer) for p in elsewhere):
        return Verdict.DOWN, Blame.LINE, False
    return Verdict.SUSPECT, Blame.UNKNOWN, False


def _settled_at(channel: Channel) -> float:
    """When replies still under way over a slower line at the time of a failure have arrived."""
    return channel.run_sent_at + 2 * (channel.run_first_reply_at - channel.run_sent_at) + 0.1


def _refused_here_only(line: LineState, peers: Peers) -> set[str]:
    """Endpoints that fail with errors on this line, where nothing succeeds, but not on others."""
    ok_at = max((line.channels[n].heard_at or 0.0) for n in (END, UDP))
    accused = set()
    for path in line.paths:
        if path.errors < ERRORS_DOWN or ok_at > path.error_since:
            continue
        elsewhere = [p for p in peers.get(path.endpoint, ()) if p.line is not line]
        if any(
            p.heard_since(path.error_since, n) for p in elsewhere for n in (END, UDP)
        ) and not any(p.errors for p in elsewhere):
            accused.add(path.endpoint)
    return accused


def _pardon(line: LineState, heard: PathState, layer: int, now: float) -> None:
    """The line is back: what its paths did not answer meanwhile is explained."""
    accuser, line.accuser = line.accuser, None
    for path in line.paths:
        if path.alone:
            continue
        if path is accuser and path is not heard:
            # Its local error put the line DOWN, yet the line is heard from others.
            path.alone = True
            continue
        for slots in path.slots.values():
            for slot in slots:
                if slot.layer in REACH[layer] and slot.sent_at < now:
                    slot.open = False
        if path.gate.since >= line.silent_at:
            for number in REACH[layer]:
                path.channels[number].clear()
            if not path.errors and not any(c.run for c in path.channels):
                path.gate.pardon()


def _show(path: PathState, peers: Peers, now: float) -> Change | None:
    old = path.finding
    line = path.line
    own, pooled = path.gate.verdict, line.gate.verdict
    if own is Verdict.UP and pooled is Verdict.UP:
        path.finding = Finding(Verdict.UP, Blame.NOBODY, "")
        reason = f"heard again on {line.name}"
    elif pooled >= own:
        half_open = " (heard again, not yet trusted)" if line.gate.half_open else ""
        path.finding = Finding(pooled, line.blame, reason := line.reason + half_open)
    else:
        half_open = " (heard again, not yet trusted)" if path.gate.half_open else ""
        path.finding = Finding(own, _own_blame(path, peers), reason := path.reason + half_open)
    if path.finding.verdict is old.verdict:
        return None
    blame = old.blame if path.finding.verdict is Verdict.UP else path.finding.blame
    return Change(path.name, old.verdict, path.finding.verdict, blame, reason, now)


def _own_blame(path: PathState, peers: Peers) -> Blame:
    if path.errors >= ERRORS_SUSPECT and path.error is not Outcome.RESET:
        return Blame.ENDPOINT
    elsewhere = (p for p in peers.get(path.endpoint, ()) if p.line is not path.line)
    if path.alone or any(p.gate.verdict is not Verdict.UP for p in elsewhere):
        return Blame.ENDPOINT
    return Blame.UNKNOWN
