"""What exchanges whose clients are flows do otherwise."""

from __future__ import annotations

from typing import Any

from edged.driver import Driver
from edged.exchanges import Exchanges
from edged.relay.flow import Flow


class RelayExchanges(Exchanges):
    """Exchanges whose clients are flows: they learn whether an error came before any harm."""

    def send_error(self, exchange: Driver[Any], error: str, detail: str) -> None:
        """See `Exchanges.send_error`."""
        flow = exchange.responder
        if isinstance(flow, Flow):
            flow.unprocessed = all(
                attempt.failure is not None and attempt.failure.unprocessed
                for attempt in exchange.record.attempts
            )
        super().send_error(exchange, error, detail)
