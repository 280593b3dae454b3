"""The last exchanges by request id, so that ``edged why ID`` can tell what was decided and why."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from itertools import islice

from edged.accesslog import ExchangeRecord
from policies.model import RequestClass

_LATELY = 1000
"""How many of the last exchanges say what is usual."""


class Recent:
    """A bounded memory of records. Only references are kept; nothing is rendered until asked."""

    __slots__ = ("_by_id", "_order")

    def __init__(self, size: int = 4096) -> None:
        self._by_id: dict[str, ExchangeRecord] = {}
        self._order: deque[str] = deque(maxlen=size)

    def add(self, record: ExchangeRecord) -> None:
        """Remember ``record``; the oldest is forgotten."""
        order = self._order
        if len(order) == order.maxlen:
            self._by_id.pop(order[0], None)
        order.append(record.request_id)
        self._by_id[record.request_id] = record

    def get(self, request_id: str) -> ExchangeRecord | None:
        """The record of an exchange that is over, or ``None`` if it is unknown or forgotten."""
        return self._by_id.get(request_id)

    def usual_classes(self) -> dict[str, RequestClass]:
        """By upstream, the class that most of its last exchanges had; none had any: no entry."""
        counts: defaultdict[str, Counter[RequestClass]] = defaultdict(Counter)
        for request_id in islice(reversed(self._order), _LATELY):
            record = self._by_id.get(request_id)
            if record is not None and record.ranking is not None:
                counts[record.upstream][record.ranking.request_class] += 1
        return {upstream: count.most_common(1)[0][0] for upstream, count in counts.items()}

    def __len__(self) -> int:
        return len(self._by_id)
