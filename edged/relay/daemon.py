"""``edged relay``: the edge's daemon with another door.

Table, dialer, pools, probes, exchanges, admin pages, reload and drain are those of `edged.daemon`;
in front of them stand TLS and QUIC, tokens, allow lists and flows instead of a proxy.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

from edged.config import Config
from edged.config_parts import RESTART_ONLY, limits_of
from edged.daemon import Daemon
from edged.downstream.fields import BadMessage
from edged.downstream.limits import Limits
from edged.downstream.listener import Listener
from edged.downstream.quic_engines import make_factory
from edged.downstream.quic_server import QuicServer
from edged.downstream.secure import Certificate, CertificateError
from edged.messages import ResponseHead
from edged.relay.config import RelayConfig, load
from edged.relay.exchanges import RelayExchanges
from edged.relay.flows import Flows
from edged.relay.report import RelayReport
from edged.relay.server import Relay
from edged.relay.targets import Guard
from edged.relay.tokens import Register
from edged.upstream.pool_types import PoolLimits
from policies.model import RequestClass

_log = logging.getLogger("edged")

FLOW_TICK_S = 0.1
QUIC_IDLE_S = 30.0
"""A client without a sign of life for so long is gone; edges ping while they have flows."""
STREAMS = 4096
"""Concurrent requests of one client connection: an edge has one or two a line."""
USER_TIMEOUT_S = 30.0
"""TCP_USER_TIMEOUT: a line that acknowledges nothing for so long carries nothing any more."""
NOT_SENT_BYTES = 64 << 10
"""TCP_NOTSENT_LOWAT: what waits here and not in the kernel can still be overtaken by a pulse, and
need not be sent twice."""
POOL_LIMITS = PoolLimits(h1_connections=1 << 16, multiplexed_connections=1024)
"""To one origin. What flows there may be is limited client by client; were it limited here, too,
one client could take all connections, and the others wait."""
_TCP_USER_TIMEOUT, _TCP_NOTSENT_LOWAT = 18, 25
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class RelayDaemon(Daemon):
    """See the module. Make it in a running loop. Raises as `Daemon`, and `CertificateError`."""

    load_config = staticmethod(load)
    restart_only: Sequence[tuple[str, str]] = (
        *((attribute, name.replace("proxy", "relay")) for attribute, name in RESTART_ONLY),
        ("chain_file", "certificate.chain_file"),
        ("key_file", "certificate.key_file"),
        ("client_ca_file", "certificate.client_ca_file"),
        ("h3", "listen.h3"),
    )
    _make_exchanges = RelayExchanges
    pool_limits = POOL_LIMITS

    def __init__(self, config: Config, *, rng: Random | None = None) -> None:
        assert isinstance(config, RelayConfig)
        self.instance = secrets.token_hex(8)
        """Another word after each start (`pulse.House`)."""
        soon = asyncio.get_running_loop().call_soon
        self.flows = Flows(monotonic, soon, config.flow_limits)
        self.certificate = Certificate(config.chain_file, config.key_file, config.client_ca_file)
        self.quic: list[QuicServer] = []
        self.relay: Relay
        self._flow_timer: asyncio.TimerHandle | None = None
        self._judge = _guard_of(config)
        super().__init__(config, rng=rng)

    # -- what differs from the edge ---------------------------------------------------------------

    def _make_listener(self, config: Config) -> Listener:
        assert isinstance(config, RelayConfig)
        self.relay = Relay(
            Register(config.clients),
            self.flows,
            self,
            self.route,
            pseudonym=config.node_name.encode(),
            later=self._loop.call_later,
        )
        listener = Listener(self.relay, relay_limits(config))
        listener.hub.refusal = _silent
        return listener

    async def _listen(self) -> None:
        config = self.config
        assert isinstance(config, RelayConfig)
        for host, port in config.listen_proxy:
            _, bound = await self.proxy.start(host, port, tls=self.certificate.context, tune=_tune)
            if config.h3:
                server = QuicServer(self.proxy.hub, _quic_factory(self.certificate))
                server.start(host, bound)
                self.quic.append(server)

    async def start(self) -> None:
        """Listen, probe, serve. Raises OSError with a text for people; then nothing runs."""
        await super().start()
        assert self.live is not None
        self.live.parts.append(RelayReport(self.relay, self.flows))
        self._tick_flows()

    async def drain(self, grace_s: float) -> int:
        """Take no new flows, finish those there are; returns how many clients were cut off."""
        self.relay.draining = True
        return await super().drain(grace_s)

    async def close(self) -> None:
        """Close everything at once."""
        if self._flow_timer is not None:
            self._flow_timer.cancel()
            self._flow_timer = None
        self.flows.close()
        await super().close()
        for server in self.quic:
            server.close()
        self.quic.clear()

    def _apply(self, config: Config) -> None:
        assert isinstance(config, RelayConfig)
        self._judge = _guard_of(config)
        super()._apply(config)
        self.proxy.reconfigure(relay_limits(config))
        self.flows.configure(config.flow_limits)
        self.relay.configure(Register(config.clients))

    def _guard(self, host: str, address: str) -> str | None:
        """What the operator listed as an upstream may be anywhere, other targets may not."""
        if any(endpoint.host == host for endpoint in self.config.topology.endpoints):
            return None
        return self._judge(host, address)

    def _keep_house(self) -> None:
        super()._keep_house()
        try:
            renewed = self.certificate.reload_if_changed()
        except CertificateError as error:
            _log.error("the new certificate cannot be used, the old one serves on: %s", error)
            return
        if renewed:
            for server in self.quic:
                server.factory = _quic_factory(self.certificate)
            _log.info("certificate loaded from %s", self.certificate.chain_file)

    def _tick_flows(self) -> None:
        self._flow_timer = self._loop.call_later(FLOW_TICK_S, self._tick_flows)
        self.flows.tick(monotonic())

    # -- what pulses tell (pulse.House) -----------------------------------------------------------

    def load(self) -> Mapping[str, float]:
        """How busy the relay is."""
        return {
            "flows": self.flows.count,
            "journal": self.flows.account.used_bytes,
            "lag_ms": round(1e3 * self.lag.p99_s, 1),
            "draining": self.relay.draining,
        }

    def far(self, host: str, port: int) -> Sequence[Mapping[str, Any]]:
        """The paths from here to a target, best first; empty while nothing is known of it."""
        routed = self.route.table.by_target(host, port)
        names = (f"{host}:{port}", f"http://{host}:{port}")
        if routed is not None:
            names = (routed.upstream, routed.upstream)
        name = next((n for n in names if n in self.table.snapshot.upstreams), None)
        if name is None:
            return ()
        legs = []
        for candidate in self.table.peek(name, RequestClass.of(0)).order:
            state = candidate.state
            estimate = state.estimate
            legs.append(
                {
                    "endpoint": state.path.endpoint.key,
                    "line": state.path.line.name,
                    "verdict": state.verdict.name.lower(),
                    "rtt_ms": _ms(estimate.rtt_s),
                    "ttfb_ms": _ms(state.ttfb_p95_s),
                    "loss": None if estimate.loss is None else round(estimate.loss, 4),
                }
            )
        return legs


def relay_limits(config: RelayConfig) -> Limits:
    """The listeners' limits."""
    return replace(limits_of(config), duplex=True, h2_streams=STREAMS)


def _guard_of(config: RelayConfig) -> Guard:
    return Guard(config.private_networks, (client.allow for client in config.clients))


def _quic_factory(certificate: Certificate) -> Any:
    return make_factory(
        Path(certificate.chain_file), Path(certificate.key_file), idle_timeout_s=QUIC_IDLE_S
    )


def _silent(error: BadMessage, hint: str) -> tuple[ResponseHead, bytes]:
    """A request that cannot be understood may be a stranger's: nobody says who answers."""
    return ResponseHead(error.status, [(b"content-type", b"text/plain")], 0), b""


def _tune(sock: socket.socket) -> None:
    """Options that connections inherit; a kernel without one of them still listens."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = (
        *_KEEPALIVE,
        (_TCP_USER_TIMEOUT, int(USER_TIMEOUT_S * 1000)),
        (_TCP_NOTSENT_LOWAT, NOT_SENT_BYTES),
    )
    for option, value in options:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 1)
