"""What a relay shows of itself on the admin pages, besides what every daemon shows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from edged.relay.flow import State
from edged.relay.flows import Flows

if TYPE_CHECKING:
    from edged.relay.server import Relay


class RelayReport:
    """A `edged.admin.views.Part`."""

    name = "relay"

    def __init__(self, relay: Relay, flows: Flows) -> None:
        self._relay = relay
        self._flows = flows

    def data(self) -> dict[str, Any]:
        """For ``/status``."""
        flows, relay = self._flows, self._relay
        return {
            "flows": flows.count,
            "journal_bytes": flows.account.used_bytes,
            "journal_limit_bytes": flows.account.limit_bytes,
            "dictionary_bytes": flows.library.used_bytes,
            "joined": relay.joined,
            "strangers": relay.strangers,
            "clients": [
                {
                    "name": ledger.name,
                    "flows": len(ledger.flows),
                    "finished": sum(f.state is State.COMPLETE for f in ledger.flows.values()),
                    "pulses": len(ledger.followers),
                    "journal_bytes": ledger.share.used_bytes,
                    "opened": ledger.opened,
                    "refused": ledger.refused,
                    "slowed": len(ledger.waiting),
                    "sent_twice": ledger.sent_twice,
                    "taken_twice": ledger.taken_twice,
                    "bodies_plain": ledger.bodies_plain,
                    "bodies_coded": ledger.bodies_coded,
                    "dictionary_bytes": ledger.dictionaries.used_bytes,
                    "dictionaries_missed": ledger.dictionaries_missed,
                }
                for ledger in flows.ledgers.values()
            ],
        }

    def metrics(self) -> Iterable[Metric]:
        """For ``/metrics``. Labels are the names of clients, which the operator gave."""
        flows, relay = self._flows, self._relay
        yield GaugeMetricFamily("edged_relay_flows", "Flows there are.", flows.count)
        yield GaugeMetricFamily(
            "edged_relay_journal_bytes",
            "Response bytes kept for all flows.",
            flows.account.used_bytes,
        )
        yield CounterMetricFamily(
            "edged_relay_strangers", "Requests of nobody known.", relay.strangers
        )
        yield CounterMetricFamily(
            "edged_relay_joins", "POSTs for a flow that there was already.", relay.joined
        )
        opened = CounterMetricFamily("edged_relay_opened", "Flows opened.", labels=["client"])
        refused = CounterMetricFamily(
            "edged_relay_refused", "Requests beyond a client's limits.", labels=["client"]
        )
        pulses = GaugeMetricFamily(
            "edged_relay_pulses", "Lines that clients hold a pulse over.", labels=["client"]
        )
        bodies = CounterMetricFamily(
            "edged_relay_coded_bytes",
            "Bodies that were coded between client and relay, before and after.",
            labels=["client", "size"],
        )
        twice = CounterMetricFamily(
            "edged_relay_twice_bytes",
            "Body bytes that went over a line again, or over two.",
            labels=["client", "direction"],
        )
        missed = CounterMetricFamily(
            "edged_relay_dictionaries_missed", "Bodies to be sent again.", labels=["client"]
        )
        for ledger in flows.ledgers.values():
            bodies.add_metric([ledger.name, "plain"], ledger.bodies_plain)
            bodies.add_metric([ledger.name, "coded"], ledger.bodies_coded)
            twice.add_metric([ledger.name, "down"], ledger.sent_twice)
            twice.add_metric([ledger.name, "up"], ledger.taken_twice)
            missed.add_metric([ledger.name], ledger.dictionaries_missed)
            opened.add_metric([ledger.name], ledger.opened)
            refused.add_metric([ledger.name], ledger.refused)
            pulses.add_metric([ledger.name], len(ledger.followers))
        yield from (opened, refused, pulses, bodies, twice, missed)
