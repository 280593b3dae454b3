"""The admin port: a `Handler` like any other, that answers from the live objects.

==============================  ====================================================
``GET /status``                 everything, as JSON
``GET /why/<request-id>``       what was decided for a recent exchange, and why
``GET /why?url=URL``            what would be decided now (also ``bytes=N``, ``stream=1``)
``GET /healthz``                200 while the loop turns
``GET /readyz``                 200 while requests should come here, else 503
``GET /metrics``                Prometheus
``POST /reload``                read the configuration again; 422 and the mistakes if refused
``POST /drill``                 ``line=L&for=S`` (also ``force=1``): silence a line until the time
                                is over or the client gone; JSON lines tell what happens; 409 if
                                it is refused
``DELETE /drill``               end what goes on; the one that began it gets its report
==============================  ====================================================
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, Coroutine
from time import monotonic
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from edged.admin.metrics import Metrics
from edged.admin.views import Live, ReloadNote, status, why_record, why_url
from edged.config_file import host_name
from edged.downstream.base import RequestSink, Responder
from edged.drill import LONGEST_S, Drill, DrillRefused, Drills
from edged.messages import Headers, RequestHead, ResponseHead, header
from edged.stages import forbidden_target
from policies.model import RequestClass

Reload = Callable[[], Awaitable[ReloadNote]]
Spawn = Callable[[Coroutine[Any, Any, None]], object]

PAGES = (
    *("/status", "/why/<request-id>", "/why?url=", "/healthz", "/readyz", "/metrics"),
    *("/reload", "/drill"),
)


class Refused(Exception):
    """The request gets this status and this sentence."""

    def __init__(self, status: int, text: str, headers: Headers | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.headers = headers or []


class Admin:
    """The handler of the admin listener."""

    def __init__(self, live: Live, *, reload: Reload, spawn: Spawn) -> None:
        """``spawn`` runs an awaitable as a task that its owner looks after."""
        self._live = live
        self._reload = reload
        self._spawn = spawn
        self._metrics = Metrics(live)

    def __call__(self, head: RequestHead, responder: Responder) -> RequestSink:
        """Answer one request, within the call unless it is a reload."""
        try:
            self._admit(head, responder.client)
            raw_path, _, query = head.path.decode("latin-1").partition("?")
            path = unquote(raw_path)
            if path == "/reload":
                _only(head, b"POST")
                sink = _Waiting()
                self._spawn(self._run_reload(responder, sink))
                return sink
            if path == "/drill":
                _only(head, b"POST", b"DELETE")
                if head.method == b"POST":
                    return self._drill(query, responder)
                self._end_drill(head, responder)
                return _Waiting()
            _only(head, b"GET", b"HEAD")
            self._get(path, query, head, responder)
        except Refused as refused:
            _json(responder, head, refused.status, {"error": refused.text}, refused.headers)
        return _Waiting()

    def _admit(self, head: RequestHead, client: str) -> None:
        """Loopback and the allow list; no web page may ask in its reader's name."""
        ip = ipaddress.ip_address(_client_host(client))
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        allowed = self._live.config.access.allow
        if not ip.is_loopback and not any(ip in net for net in allowed):
            raise Refused(403, f"{ip} is not in access.allow")
        if header(head.headers, b"origin") is not None:
            raise Refused(403, "requests from web pages are refused")
        if ip.is_loopback and not _is_local_name(head.authority.decode("latin-1")):
            raise Refused(421, "on loopback the Host is an IP address or localhost")

    def _get(self, path: str, query: str, head: RequestHead, responder: Responder) -> None:
        now = monotonic()
        if path == "/healthz":
            _json(responder, head, 200, {"ok": True})
        elif path == "/readyz":
            reason = self._live.not_ready()
            code = 200 if reason is None else 503
            _json(responder, head, code, {"ready": reason is None, "reason": reason})
        elif path == "/status":
            _json(responder, head, 200, status(self._live, now))
        elif path == "/metrics":
            accept = header(head.headers, b"accept") or b""
            body, content_type = self._metrics.render(accept.decode("latin-1"))
            _send(responder, head, 200, body, content_type)
        elif path == "/why":
            _json(responder, head, 200, self._why_url(query, now))
        elif path.startswith("/why/"):
            _json(responder, head, 200, self._why_id(path.removeprefix("/why/"), now))
        else:
            raise Refused(404, f"no such page; there are {', '.join(PAGES)}")

    def _why_id(self, request_id: str, now: float) -> dict[str, Any]:
        record = self._live.recent.get(request_id)
        if record is None:
            count = len(self._live.recent)
            raise Refused(404, f"no exchange {request_id!r} among the last {count} that are over")
        return why_record(record, now)

    def _why_url(self, query: str, now: float) -> dict[str, Any]:
        values = {key: items[-1] for key, items in parse_qs(query).items()}
        text = values.get("url", "")
        try:
            url = urlsplit(text if "//" in text else f"//{text}")
            host = host_name(url.hostname or "") if url.netloc else ""
            port = url.port
        except ValueError:
            raise Refused(400, "url is a URL, or a path of the gateway") from None
        length = values.get("bytes", "0")
        if not length.isascii() or not length.isdigit():
            raise Refused(400, "bytes is a number")
        stream = values.get("stream", "") not in ("", "0")
        if not host and not url.path.startswith("/"):
            raise Refused(400, "give url=URL, as https://api.example.com/v1")
        if port is not None and _is_local_name(url.netloc) and self._listens_on(port):
            host = ""  # what a client of the gateway would ask for
        cls = RequestClass.of(int(length), streaming=stream)
        unlisted = _unlisted_name(url.scheme, host, port)
        data = why_url(self._live, host, url.path or "/", unlisted, cls, now)
        if data is None:
            raise Refused(404, f"{host or url.path} is in no upstream; {self._unlisted(host)}")
        return data

    def _unlisted(self, host: str) -> str:
        """What becomes of a request for a host in no upstream."""
        if not host or not self._live.config.unlisted_allowed:
            return "it is refused"
        refused = forbidden_target(host, client_is_local=True)
        if refused is not None:
            return f"it is refused: {refused}"
        return "once it was asked for, its paths are shown"

    def _listens_on(self, port: int) -> bool:
        return any(address.endswith(f":{port}") for address in self._live.listening)

    def _drill(self, query: str, responder: Responder) -> RequestSink:
        """Begin a drill; its events are the answer, and it lasts no longer than the client."""
        values = {key: items[-1] for key, items in parse_qs(query).items()}
        line = values.get("line", "")
        known = [line.name for line in self._live.config.topology.lines]
        if line not in known:
            raise Refused(404, f"no line is named {line!r}; lines: {', '.join(known)}")
        try:
            for_s = float(values.get("for", "10"))
        except ValueError:
            for_s = 0.0
        if not 0 < for_s <= LONGEST_S:
            raise Refused(400, f"for is a number of seconds, at most {LONGEST_S:g}")
        sink = _Listening(self._live.drills, responder)
        force = values.get("force", "") not in ("", "0")
        try:
            sink.drill = self._live.drills.begin(line, for_s, force=force, tell=sink.tell)
        except DrillRefused as refused:
            raise Refused(409, str(refused)) from None
        return sink

    def _end_drill(self, head: RequestHead, responder: Responder) -> None:
        drill = self._live.drills.current
        if drill is None:
            raise Refused(404, "there is no drill")
        drill.stop("request")
        _json(responder, head, 200, {"line": drill.line})

    async def _run_reload(self, responder: Responder, sink: _Waiting) -> None:
        note = await self._reload()
        if not sink.left:
            _json(responder, None, 200 if note.ok else 422, note.data())


class _Waiting:
    """The sink of a request; its body, if any, is ignored."""

    def __init__(self) -> None:
        self.left = False

    def body(self, data: bytes) -> None: ...
    def body_end(self, trailers: Headers | None) -> None: ...
    def gone(self) -> None:
        """The client did not wait."""
        self.left = True

    def pause_response(self) -> None: ...
    def resume_response(self) -> None: ...


class _Listening(_Waiting):
    """Whoever began a drill: gets its events, and ends it by going away."""

    def __init__(self, drills: Drills, responder: Responder) -> None:
        super().__init__()
        self.drill: Drill | None = None
        self._drills = drills
        self._responder = responder
        self._begun = False

    def tell(self, event: dict[str, Any]) -> None:
        """Pass an event on as a line; the report is the last."""
        if self.left:
            return
        if not self._begun:
            self._begun = True
            fields: Headers = [
                (b"content-type", b"application/x-ndjson"),
                (b"cache-control", b"no-store"),
            ]
            self._responder.head(ResponseHead(200, fields, None))
        self._responder.data(json.dumps(event, allow_nan=False).encode() + b"\n")
        if event["event"] == "report":
            self._responder.end()

    def gone(self) -> None:
        """The client did not wait."""
        super().gone()
        if self.drill is not None and self._drills.current is self.drill:
            self._drills.end("client gone")


def _only(head: RequestHead, *methods: bytes) -> None:
    if head.method not in methods:
        allow = b", ".join(methods)
        raise Refused(405, f"only {allow.decode()}", [(b"allow", allow)])


def _client_host(client: str) -> str:
    return client.rpartition(":")[0].strip("[]").partition("%")[0]


def _is_local_name(authority: str) -> bool:
    """A name that no DNS answer of an attacker can have brought here."""
    host = urlsplit(f"//{authority}").hostname or ""
    if host == "localhost":
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _unlisted_name(scheme: str, host: str, port: int | None) -> str:
    """What `edged.table.PathTable.ensure` calls a host that is in no upstream."""
    if scheme == "http" and port not in (None, 80):
        return f"http://{host}:{port}"
    return f"{host}:{port or (80 if scheme == 'http' else 443)}"


def _json(
    responder: Responder,
    head: RequestHead | None,
    code: int,
    data: object,
    headers: Headers | None = None,
) -> None:
    body = json.dumps(data, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    _send(responder, head, code, body, "application/json", headers)


def _send(
    responder: Responder,
    head: RequestHead | None,
    code: int,
    body: bytes,
    content_type: str,
    more: Headers | None = None,
) -> None:
    headers: Headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-store")]
    headers += more or []
    if head is not None and head.method == b"HEAD":
        responder.head(ResponseHead(code, headers, 0, declared_length=len(body)))
    else:
        responder.head(ResponseHead(code, headers, len(body)))
        responder.data(body)
    responder.end()
