"""The last exchanges by request id, so that ``edged why ID`` can tell what was decided and why."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from itertools import islice

from edged.accesslog import ExchangeRecord
from policies.model import RequestClass

_LATELY = 1000
"""How many of the last exchanges say what is usual."""


class Recent:
    """A bounded memory of records. Only references are kept; nothing is rendered until asked.

    There is no index: every exchange is remembered, and hardly one of them is ever asked for. A
    ranking holds all candidates as they were, 1 KB each, and there is a new one ten times a second
    for each class: so it is forgotten before its record, unless that tells of more than one attempt
    or of an error. ``size`` and ``ranked``: how many records, and how many such rankings.
    """

    __slots__ = ("_ranked", "_ranked_most", "_records")

    def __init__(self, size: int = 4096, ranked: int = 1024) -> None:
        self._records: deque[ExchangeRecord] = deque(maxlen=size)
        self._ranked: deque[ExchangeRecord] = deque()
        self._ranked_most = ranked

    def add(self, record: ExchangeRecord) -> None:
        """Remember ``record``; the oldest is forgotten."""
        self._records.append(record)
        if record.attempts or record.error is not None:
            return
        ranked = self._ranked
        ranked.append(record)
        if len(ranked) > self._ranked_most:
            ranked.popleft().ranking = None

    def get(self, request_id: str) -> ExchangeRecord | None:
        """The record of an exchange that is over, or ``None`` if it is unknown or forgotten."""
        latest_first = reversed(self._records)
        return next((record for record in latest_first if record.request_id == request_id), None)

    def usual_classes(self) -> dict[str, RequestClass]:
        """By upstream, the class that most of its last exchanges had; none had any: no entry."""
        counts: defaultdict[str, Counter[RequestClass]] = defaultdict(Counter)
        for record in islice(reversed(self._records), _LATELY):
            if record.ranking is not None:
                counts[record.upstream][record.ranking.request_class] += 1
        return {upstream: count.most_common(1)[0][0] for upstream, count in counts.items()}

    def __len__(self) -> int:
        return len(self._records)
