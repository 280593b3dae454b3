"""``edged status``, ``why`` and ``reload``: questions to a running daemon's admin port."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx

from edged.admin.text import print_status, print_why
from edged.commands.console import console
from edged.config_file import split_address
from edged.failure import Failed

TIMEOUT_S = 10.0


class Client:
    """Talks to one admin listener, given as address:port or as its URL.

    Every failure is a `Failed` with a hint.
    """

    def __init__(self, address: str) -> None:
        address = address.removeprefix("http://").rstrip("/")
        if address.startswith("localhost:"):
            address = address.replace("localhost", "127.0.0.1", 1)
        try:
            host, port = split_address(address)
        except ValueError as error:
            raise Failed(f"--admin {address}: {error}", 2) from None
        self._address = address
        self._base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def ask(self, method: str, target: str) -> tuple[int, Any]:
        """The status and the JSON of the answer."""
        # The environment's proxy may well be edged itself.
        with self._failing(), httpx.Client(trust_env=False, timeout=TIMEOUT_S) as client:
            response = client.request(method, self._base + target)
            return response.status_code, response.json()

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Errors of httpx as failures with a hint."""
        try:
            yield
        except httpx.ConnectError:
            text = f"no daemon answers on {self._address}; is it running? (--admin says where)"
        except httpx.TimeoutException:
            text = f"the daemon on {self._address} did not answer within {TIMEOUT_S:.0f} s"
        except httpx.HTTPError as error:
            text = f"{self._address}: {error}"
        except json.JSONDecodeError:
            text = f"what answers on {self._address} is not edged's admin listener"
        else:
            return
        raise Failed(text)

    def events(self, method: str, target: str) -> Iterator[Any]:
        """The JSON lines of a 200 as they come; any other answer is a failure."""
        with (
            self._failing(),
            httpx.Client(trust_env=False, timeout=TIMEOUT_S) as client,
            client.stream(method, self._base + target) as response,
        ):
            if response.status_code != 200:
                response.read()
                raise Failed(_error(response.json()) or f"it answered {response.status_code}")
            for line in response.iter_lines():
                yield json.loads(line)

    def get(self, target: str) -> Any:
        """The JSON of a 200; any other answer is a failure."""
        status, data = self.ask("GET", target)
        if status != 200:
            raise Failed(_error(data) or f"{self._address} answered {status}")
        return data


def status(client: Client, *, as_json: bool) -> int:
    """Print the state of the daemon."""
    data = client.get("/status")
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        print_status(console(), data)
    return 0


def why(client: Client, what: str, *, body: int, stream: bool, as_json: bool) -> int:
    """Print what decides for a URL now, or decided for a request."""
    if "/" in what or "." in what or ":" in what:
        target = f"/why?url={quote(what, safe='')}&bytes={body}&stream={int(stream)}"
    else:
        target = f"/why/{quote(what, safe='')}"
    data = client.get(target)
    if as_json:
        print(json.dumps(data, indent=2))
    else:
        print_why(console(), data)
    return 0


def reload(client: Client) -> int:
    """Ask for a reload and say what came of it."""
    status_code, data = client.ask("POST", "/reload")
    if status_code == 200:
        print("reloaded")
        return 0
    if status_code != 422:
        raise Failed(str(data.get("error", f"the daemon answered {status_code}")))
    mistakes = "\n  ".join(data["mistakes"])
    raise Failed(f"refused; nothing was changed:\n  {mistakes}")


def _error(data: Any) -> str | None:
    error = data.get("error") if isinstance(data, dict) else None
    return error if isinstance(error, str) else None
