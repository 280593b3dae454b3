"""What an edge shows of its relays on the admin pages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from edged.relay.client import Relayed


class RelaysReport:
    """A `edged.admin.views.Part`."""

    name = "relays"

    def __init__(self, relayed: Relayed) -> None:
        self._relayed = relayed

    def data(self) -> list[dict[str, Any]]:
        """For ``/status``."""
        return [
            {
                "name": client.name,
                "flows": len(client.flows),
                "opened": client.opened,
                "copies": client.copies,
                "bodies_plain": client.bodies.plain_bytes,
                "bodies_coded": client.bodies.coded_bytes,
                "dictionaries_missed": client.bodies.missed,
                "asked_again": max(0, client.visits - client.opened),
                "legs": [
                    {
                        "line": leg.name,
                        "connected": leg.connected,
                        "silent": leg.silent,
                        "verdict": leg.verdict.name,
                        "rtt_ms": None if leg.rtt is None else round(1e3 * leg.rtt.srtt_s, 1),
                        "loss": leg.loss,
                        "visits": len(leg.visits),
                    }
                    for leg in client.legs.values()
                ],
            }
            for client in self._relayed.clients.values()
        ]

    def metrics(self) -> Iterable[Metric]:
        """For ``/metrics``. Labels are the operator's names."""
        flows = GaugeMetricFamily("edged_flows", "Exchanges through a relay.", labels=["relay"])
        copies = GaugeMetricFamily(
            "edged_flows_twice", "Of these, those that go over two lines.", labels=["relay"]
        )
        opened = CounterMetricFamily("edged_flows_opened", "Flows so far.", labels=["relay"])
        visits = CounterMetricFamily(
            "edged_flow_visits",
            "Requests about flows: more than flows, where lines failed or copies were wanted.",
            labels=["relay"],
        )
        pulse = GaugeMetricFamily(
            "edged_relay_leg_rtt_seconds",
            "Round trip of the pulse over a line to a relay.",
            labels=["relay", "line"],
        )
        bodies = CounterMetricFamily(
            "edged_flow_body_bytes",
            "Request bodies that went to a relay coded, before and after.",
            labels=["relay", "size"],
        )
        missed = CounterMetricFamily(
            "edged_flow_dictionaries_missed", "Bodies that were sent again.", labels=["relay"]
        )
        for client in self._relayed.clients.values():
            bodies.add_metric([client.name, "plain"], client.bodies.plain_bytes)
            bodies.add_metric([client.name, "coded"], client.bodies.coded_bytes)
            missed.add_metric([client.name], client.bodies.missed)
            flows.add_metric([client.name], len(client.flows))
            copies.add_metric([client.name], client.copies)
            opened.add_metric([client.name], client.opened)
            visits.add_metric([client.name], client.visits)
            for leg in client.legs.values():
                if leg.rtt is not None:
                    pulse.add_metric([client.name, leg.name], leg.rtt.srtt_s)
        yield from (flows, copies, opened, visits, pulse, bodies, missed)
