"""How much silence is a verdict: runs of unanswered slots against what loss alone would do.

A slot is one thing sent that ought to be answered by a deadline. Slots come every d seconds; each
goes unanswered with probability p although nothing is wrong. A run of k unanswered slots then
happens by chance ``(1/d) * p^k * (1-p)`` times a second; k is the smallest that keeps this at one
false SUSPECT a minute and one false DOWN a day. Where losses were seen to come in bursts, the
chance p' that a loss follows a loss takes p's place from the second slot on, and one false SUSPECT
in 10 s and one false DOWN an hour are accepted.

k at d = 50 ms for loss 0.1/1/5/15%: SUSPECT 2/2/3/4, DOWN 3/4/5/8.
"""

from __future__ import annotations

from collections import deque
from math import sqrt
from typing import Final

from policies.model import Verdict

FALSE_SUSPECT_PER_S: Final = 1 / 60
FALSE_DOWN_PER_S: Final = 1 / 86_400
FALSE_SUSPECT_IN_BURSTS_PER_S: Final = 1 / 10
FALSE_DOWN_IN_BURSTS_PER_S: Final = 1 / 3600

MERGE_S: Final = 0.02
"""Slots closer than this share one burst of loss and count as one."""
STEP_S: Final = 0.35
"""A round trip may grow by so much at once (a queue that fills, another route): DOWN waits until
the reply to a run's first slot would have come all the same. A shorter outage is cheaper to sit
out, too: to move costs a round trip, and executes again what was only late."""
RECEIPTS_HOLD_S: Final = 0.5
"""So long DOWN waits while bytes still arrive."""
BURST_S: Final = 2.0
"""Losses further apart are of different bursts."""
LONGEST_SPACING_S: Final = 60.0
FIRST_SPACING_S: Final = 1.0
_LEAST_LOSS: Final = 0.001
_GREATEST_LOSS: Final = 0.5
_GREATEST_RUN: Final = 20
_PRIOR_SLOTS: Final = 100.0
"""Loss starts as 1 of 100 slots."""
_PRIOR_LOSSES: Final = 20.0
"""Burstiness starts as none, on the strength of 20 losses."""
_MEMORY_SLOTS: Final = 4096.0
_RECENT_SLOTS: Final = 16
_CAUTION: Final = 1.645
"""DOWN reckons with the one-sided 95% bound of p: to underestimate it convicts the innocent."""


def slots_needed(
    loss: float, spacing_s: float, false_per_s: float, loss_after_loss: float | None = None
) -> int:
    """The smallest k for which chance makes a run of k at most ``false_per_s`` times a second.

    ``loss_after_loss`` is p' (``None``: losses are independent). At most 20.
    """
    p = min(max(loss, _LEAST_LOSS), _GREATEST_LOSS)
    again = p if loss_after_loss is None else min(max(loss_after_loss, p), 0.9)
    rate = p * (1 - again) / spacing_s
    k = 1
    while rate > false_per_s and k < _GREATEST_RUN:
        rate *= again
        k += 1
    return k


class Channel:
    """The slots of one layer on a path or, pooled over its endpoints, on a line.

    ``run`` counts consecutive unanswered slots since anything was heard; it is 0 when all is well.
    """

    __slots__ = (
        "_answered",
        "_followed",
        "_lost",
        "_lost_at",
        "_slots",
        "at",
        "back_at",
        "beyond_icmp",
        "endpoints",
        "gap_s",
        "heard_at",
        "last_sent_at",
        "late_s",
        "proved_at",
        "run",
        "run_first_reply_at",
        "run_last_sent_at",
        "run_reply_at",
        "run_sent_at",
        "spacing_s",
    )

    def __init__(self) -> None:
        self.heard_at: float | None = None
        """When anything last arrived."""
        self.proved_at = float("-inf")
        """The latest sending that was answered: both ways were alive then."""
        self.back_at = float("-inf")
        """When the last run ended that was as long as an outage's."""
        self.last_sent_at: float | None = None
        self.spacing_s = FIRST_SPACING_S
        self.gap_s = FIRST_SPACING_S
        self.run = 0
        self.run_sent_at = 0.0
        """When the first slot of the run was sent: the silence began there."""
        self.run_last_sent_at = 0.0
        self.run_first_reply_at = 0.0
        self.run_reply_at = 0.0
        """When the replies to the first and the latest silent slot should have come."""
        self.endpoints: set[str] = set()
        """Whose slots the run consists of."""
        self.beyond_icmp = False
        """Whether anything but ICMP is in the run."""
        self.at = 0.0
        """The time for which ``verdict`` is asked."""
        self.late_s = 0.0
        """By how much answers were late of late: others may be as late, and more."""
        self._slots = 0.0
        self._lost = 0.0
        self._followed = 0.0
        self._lost_at = float("-inf")
        """When the latest lost slot was sent."""
        self._answered: deque[float] = deque(maxlen=_RECENT_SLOTS)
        """When slots answered of late were sent."""

    def sent(self, at: float) -> None:
        """A slot was sent: follow the actual spacing (smoothed by 1/4)."""
        last = self.last_sent_at
        if last is None:
            self.last_sent_at = at
            return
        gap = at - last
        if gap < MERGE_S:
            return
        self.last_sent_at = at
        self.gap_s = min(gap, LONGEST_SPACING_S)
        self.spacing_s += (self.gap_s - self.spacing_s) / 4

    def answered(self, sent_at: float) -> None:
        """A slot sent at ``sent_at`` was answered, in time or late."""
        self._answered.append(sent_at)
        self._count(1, 0, 0)

    def silent(self, sent_at: float, reply_at: float, endpoint: str, *, icmp: bool) -> None:
        """A slot went unanswered that was sent at ``sent_at`` and should have by ``reply_at``.

        If something sent no earlier was answered, the slot was merely lost.
        """
        if sent_at <= self.proved_at:
            self._lose(sent_at)
            return
        if not self.run:
            self.run_sent_at = self.run_last_sent_at = sent_at
            self.run_first_reply_at = self.run_reply_at = reply_at
            self.run = 1
        elif sent_at - self.run_last_sent_at >= MERGE_S:
            self.run += 1
            self.run_last_sent_at = sent_at
            self.run_reply_at = reply_at
        elif sent_at < self.run_sent_at:
            # Overdue later, because its reply was expected less exactly: it began sooner.
            self.run += self.run_sent_at - sent_at >= MERGE_S
            self.run_sent_at, self.run_first_reply_at = sent_at, reply_at
        self.endpoints.add(endpoint)
        self.beyond_icmp = self.beyond_icmp or not icmp

    def heard(self, at: float, sent_at: float) -> None:
        """What was sent at ``sent_at`` was answered. If that was since the run began, the run is
        over, and unless it was an outage it was loss."""
        self.heard_at = at
        if sent_at > self.proved_at:
            self.proved_at = sent_at
        if self.run and sent_at >= self.run_sent_at - MERGE_S:
            needed = self.needed(Verdict.DOWN)
            if self.run >= needed:
                self.back_at = at
            if self.run <= 2 * needed:
                self._lose(self.run_sent_at)
                self._count(self.run - 1, self.run - 1, self.run - 1)
                self._lost_at = self.run_last_sent_at
            self.clear()

    def received(self, at: float) -> None:
        """Bytes arrived that answer nothing in particular."""
        if self.heard_at is None or at > self.heard_at:
            self.heard_at = at

    def clear(self) -> None:
        """Forget the run without drawing a lesson from it."""
        self.run = 0
        self.endpoints.clear()
        self.beyond_icmp = False

    def _lose(self, sent_at: float) -> None:
        """A slot was lost: did it follow another without an answered one between?"""
        before, self._lost_at = self._lost_at, max(self._lost_at, sent_at)
        if abs(sent_at - before) < MERGE_S:
            return
        low, high = min(before, sent_at), max(before, sent_at)
        alone = sent_at - before > BURST_S or any(low < at < high for at in self._answered)
        self._count(1, 1, 0 if alone else 1)

    def _count(self, slots: int, lost: int, followed: int) -> None:
        self._slots += slots
        self._lost += lost
        self._followed += followed
        if self._slots > _MEMORY_SLOTS:
            self._slots /= 2
            self._lost /= 2
            self._followed /= 2

    @property
    def loss(self) -> float:
        """p: the share of slots that go unanswered while nothing is wrong."""
        return (self._lost + 0.01 * _PRIOR_SLOTS) / (self._slots + _PRIOR_SLOTS)

    @property
    def loss_after_loss(self) -> float:
        """p': the share of losses that are followed by another."""
        return (self._followed + _PRIOR_LOSSES * self.loss) / (self._lost + _PRIOR_LOSSES)

    @property
    def pace_s(self) -> float:
        """d: the smoothed spacing, or the last gap where probing just sped up."""
        return max(MERGE_S, min(self.spacing_s, self.gap_s))

    def needed(self, verdict: Verdict) -> int:
        """How many silent slots make ``verdict`` (DOWN: never fewer than two)."""
        d, p = self.pace_s, self.loss
        if verdict is Verdict.SUSPECT:
            return max(
                slots_needed(p, d, FALSE_SUSPECT_PER_S),
                slots_needed(p, d, FALSE_SUSPECT_IN_BURSTS_PER_S, self.loss_after_loss),
            )
        bound = p + _CAUTION * sqrt(p * (1 - p) / (self._slots + _PRIOR_SLOTS))
        return max(
            2,
            slots_needed(bound, d, FALSE_DOWN_PER_S),
            slots_needed(p, d, FALSE_DOWN_IN_BURSTS_PER_S, self.loss_after_loss),
        )

    @property
    def verdict(self) -> Verdict:
        """What the run alone says."""
        if not self.run or self.run < self.needed(Verdict.SUSPECT):
            return Verdict.UP
        if self.run < self.needed(Verdict.DOWN) or self.at < self.patient_until or self.held:
            return Verdict.SUSPECT
        return Verdict.DOWN

    @property
    def patient_until(self) -> float:
        """Until then answers may merely be late, by no more than a step and what was seen."""
        return self.run_first_reply_at + STEP_S + self.late_s

    @property
    def still_receiving(self) -> bool:
        """Whether bytes came after the latest silent slot's answer should have."""
        return self.run > 0 and self.heard_at is not None and self.heard_at > self.run_reply_at

    @property
    def held(self) -> bool:
        """Whether bytes that still arrive hold DOWN off."""
        lasted_s = self.run_last_sent_at - self.run_sent_at
        return lasted_s < RECEIPTS_HOLD_S and self.still_receiving

    @property
    def rtt_s(self) -> float:
        """What a reply to the run's first slot takes."""
        return self.run_first_reply_at - self.run_sent_at


class Gate:
    """A verdict that worsens at once and gets better step by step.

    | from | event | to |
    | --- | --- | --- |
    | any | evidence of something worse | that |
    | SUSPECT | heard, no evidence left | UP |
    | DOWN | heard, evidence for less | SUSPECT, half-open |
    | SUSPECT, half-open | heard three times in all, no silence between | UP |
    """

    __slots__ = ("_credits", "half_open", "since", "verdict")

    CREDITS: Final = 3

    def __init__(self) -> None:
        self.verdict = Verdict.UP
        self.half_open = False
        self.since = 0.0
        """When it last became worse than UP."""
        self._credits = 0

    def worsen(self, evidence: Verdict, at: float) -> None:
        """Silence or an error: ``evidence`` is what there is against it now."""
        if evidence > self.verdict:
            if self.verdict is Verdict.UP:
                self.since = at
            self.verdict = evidence
            if evidence is Verdict.DOWN:
                self.half_open = False

    def stumble(self) -> None:
        """A silent slot: arrivals before it no longer count towards trust."""
        self._credits = 0

    def better(self, evidence: Verdict) -> None:
        """Something was heard, and ``evidence`` is what is left."""
        if evidence >= self.verdict:
            return
        if self.verdict is Verdict.DOWN:
            self.verdict = Verdict.SUSPECT
            self.half_open = True
            self._credits = 1
        elif self.half_open:
            self._credits += 1
            if self._credits >= self.CREDITS:
                self.pardon()
        else:
            self.verdict = evidence

    def pardon(self) -> None:
        """UP at once: what spoke against it has another explanation."""
        self.verdict = Verdict.UP
        self.half_open = False
        self._credits = 0
