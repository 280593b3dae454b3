"""What an attempt that failed with an error says of its path and its line: the rows of the rules in
`policies.detector` that are not of silence."""

from __future__ import annotations

from policies.ledger import END, SYN, UDP, PathState, layer_of, witness
from policies.model import Kind, Outcome, Sample, Verdict


def local_error(path: PathState, sample: Sample, now: float) -> None:
    """This host or its gateway said UNREACHABLE or DNS."""
    line, outcome = path.line, sample.outcome
    verdict = Verdict.DOWN if outcome is Outcome.UNREACHABLE else Verdict.SUSPECT
    path.reason = sample.detail or f"this host or its gateway reported {outcome} over {line.name}"
    path.gate.worsen(verdict, now)
    if witness(path) and (path.listed or outcome is not Outcome.DNS):
        line.reason = path.reason
        line.accuser = path
        line.gate.worsen(verdict, now)
    if outcome is Outcome.DNS and path.listed:
        path.unanswered(Kind.HTTP, END, sample.sent_at, now)


def remote_error(path: PathState, sample: Sample, now: float) -> int | None:
    """The other side, or something before it, said REFUSED, RESET, TLS or PROTOCOL.

    The layer on which that was a sign of life; ``None``: it was none.
    """
    layer = layer_of(sample.kind, sample.carrier)
    transport = UDP if layer == UDP else SYN
    alive = sample.outcome is not Outcome.RESET
    if alive:
        for channel in path.hears[transport]:
            channel.heard(now, sample.sent_at)
        slots = path.slots.get((sample.kind, layer))
        if slots:
            path.answer(slots, sample.sent_at)
    if sample.sent_at >= path.attempt_after:
        # Exchanges that fail together fail once: only an attempt made since counts again.
        path.attempt_after = now
        if not path.errors:
            path.error_since = now
        path.errors += 1
        path.error_layer = transport if sample.outcome is Outcome.REFUSED else END
        path.error = sample.outcome
    return transport if alive else None
