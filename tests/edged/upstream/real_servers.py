"""The servers of `tests.harness.servers`, for those who need no more of them than the port."""

from contextlib import contextmanager

from tests.harness import servers
from tests.harness.servers import CADDY, Certificate

__all__ = ["CADDY", "Certificate", "caddy", "haproxy", "nginx"]


def _port_of(start):
    @contextmanager
    def started(*args, **named):
        with start(*args, **named) as server:
            yield server.port

    return started


caddy = _port_of(servers.caddy)
nginx = _port_of(servers.nginx)
haproxy = _port_of(servers.haproxy)
