"""Paths of two legs: what is known of the way to a relay says what its paths are worth.

Only the leg to the relay is measured here; the rest is the relay's own word. A path through a relay
is as bad as the worse of both, and its round trips add up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from policies.ledger import Finding
from policies.model import Blame, Change, Estimate, FarLeg

if TYPE_CHECKING:
    from edged.records import PathRecord


def finding(near: Finding, far: FarLeg | None, endpoint: str) -> Finding:
    """The worse of two legs; ``endpoint`` is where the second leads."""
    if far is None or far.verdict <= near.verdict:
        return near
    reason = f"the relay reports its own way to {endpoint} as {far.verdict.name}"
    return Finding(far.verdict, Blame.ENDPOINT, reason)


def joined(near: Estimate, far: FarLeg | None) -> Estimate:
    """A path of two legs: round trips add up, and a packet must survive both."""
    if far is None or far.rtt_s is None:
        return near
    loss = near.loss
    if loss is not None and far.loss is not None:
        loss = 1 - (1 - loss) * (1 - far.loss)
    return replace(
        near,
        rtt_s=_sum(near.rtt_s, far.rtt_s),
        rtt_min_s=_sum(near.rtt_min_s, far.rtt_s),
        p50_s=_sum(near.p50_s, far.rtt_s),
        p95_s=_sum(near.p95_s, far.rtt_s),
        loss=loss,
    )


def _sum(one: float | None, other: float) -> float | None:
    return None if one is None else one + other


def spread(records: Mapping[str, PathRecord], changes: Sequence[Change]) -> Sequence[Change]:
    """``changes``, and what those of legs mean for the paths that begin with them."""
    result = list(changes)
    for change in changes:
        record = records.get(change.path)
        for dependent in () if record is None else record.dependents:
            old, far = dependent.finding.verdict, dependent.far
            new = change.new if far is None else max(change.new, far.verdict)
            if new is not old:
                dependent.finding = Finding(new, change.blame, change.reason)
                result.append(
                    Change(dependent.path.name, old, new, change.blame, change.reason, change.at)
                )
    return result


def reported(record: PathRecord, far: FarLeg | None, now: float) -> Change | None:
    """Take a relay's word; the change that it makes, if it makes one."""
    record.far = far
    old, new = record.finding, record.relayed_finding()
    if new.verdict is old.verdict:
        return None
    record.finding = new
    return Change(record.path.name, old.verdict, new.verdict, new.blame, new.reason, now)
