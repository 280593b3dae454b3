"""What one sample, or one change of a verdict, says of the records that it concerns.

Evidence of one sample:

==============================  =======================  ==================  =====================
outcome                         verdict (`detector`)     breaker of path     cohort of endpoints
==============================  =======================  ==================  =====================
OK of TLS, HTTP, QUIC, TTFB     heard                    good                good
OK of TCP, PING, PULSE          heard                    good                --
OK of ICMP, KERNEL              heard                    --                  --
HTTP_ERROR                      heard                    good                bad
BUSY                            heard                    good                rests
REFUSED, TLS, PROTOCOL          its rules                bad                 bad
TIMEOUT, UNREACHABLE, DNS,      its rules                bad, unless DOWN    --
RESET
LOCAL                           --                       --                  --
==============================  =======================  ==================  =====================

Verdicts are `policies.detector`'s. Here are the others, on the records of `edged.records`.
"""

from __future__ import annotations

import random

from edged.records import PathRecord
from policies.breaker import is_evidence, local_failure
from policies.ejection import clearly_worse
from policies.model import Blame, Change, Kind, Outcome, Sample, Verdict
from policies.window import is_exchange

_ANSWERED = frozenset({Kind.TLS, Kind.HTTP, Kind.QUIC, Kind.TTFB})


def learn(record: PathRecord, sample: Sample, rtt_s: float | None, now: float) -> None:
    """What an exchange on a path with this round trip tells of its endpoint's latency and limit."""
    remote = record.remote
    if sample.outcome is Outcome.BUSY:
        remote.busy(now)
    elif is_exchange(sample) and sample.rtt_s is not None:
        remote.latency.observe(sample.rtt_s, now)
        if sample.outcome is Outcome.OK and sample.found is not None:
            remote.answered(((sample.rtt_s, sample.found),), rtt_s, now)


def judge(
    record: PathRecord, sample: Sample, now: float, rng: random.Random, *, down: bool
) -> bool:
    """Breaker and cohort; says whether a gate or an exclusion changed. ``down``: its verdict is."""
    outcome, kind = sample.outcome, sample.kind
    if outcome is Outcome.OK and kind is Kind.TTFB:
        record.goods += 1
        return record.gate.good(now)
    if not is_evidence(kind):
        return False
    record.settle(now)
    cohort, endpoint = record.upstream.cohort, record.endpoint
    moved = False
    if not local_failure(outcome):
        record.rate.add(True, now)
        moved = record.gate.good(now)
    elif not down:
        record.rate.add(False, now)
        opened = record.gate.bad(outcome, now, rng, sent_at=sample.sent_at)
        moved = opened or _outlier(record, now, rng)
    if outcome is Outcome.OK and kind in _ANSWERED:
        cohort.good(endpoint, now)
    elif outcome is Outcome.BUSY:
        moved = cohort.busy(endpoint, sample.retry_after_s, now) or moved
    elif outcome.blame is Blame.ENDPOINT:
        moved = cohort.bad(endpoint, outcome.value, now, rng) or moved
    return moved


def _outlier(record: PathRecord, now: float, rng: random.Random) -> bool:
    """The cohort rule among the paths of an upstream."""
    others = [r for r in record.upstream.paths if r is not record]
    if not others:
        return False
    for other in others:
        other.settle(now)
    best = max(others, key=lambda r: r.rate.mean)
    if not clearly_worse(record.rate, best.rate, now):
        return False
    share = f"{record.rate.mean:.0%} against {best.rate.mean:.0%} of {best.path.name}"
    return record.gate.outlier(f"succeeds far less often: {share}", now, rng)


def changed(record: PathRecord, change: Change, *, line_down: bool) -> None:
    """What a verdict means for estimates, damping and hazard. ``line_down``: all its line is."""
    if change.old is Verdict.UP:
        record.window.mark()
    elif change.old is Verdict.DOWN:
        record.window.rewind()
    if change.new > change.old:
        record.damping.fell(change.old, change.new, change.at)
    elif record.damping.fallen:
        record.damping.came_back(change.at)
    line = record.line
    if line_down and not line.was_down and not line.drilled:
        line.hazard.outage(change.at)
    line.was_down = line_down
