"""The relay's door: who asks, for which flow, and whether they may.

One `Handler` behind all listeners. Whoever is not known gets the same 404 for everything, and
learns nothing from the time it takes. Who is known gets answers that say what is wrong.

    POST   flow/<id>   open, or join: send the request (from upload-offset), read the response
    GET    flow/<id>   read the response from edged-offset
    PATCH  flow/<id>   send the request from upload-offset; 204 once it is taken
    HEAD   flow/<id>   how far both are
    DELETE flow/<id>   give up, or be done
    POST   pulse       heartbeats (`edged.relay.pulse`)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from edged.datagrams import Messenger
from edged.downstream.base import Handler, RequestSink, Responder
from edged.headers import ANSWERED, Answered, answer, error_response, has_passed, http_date
from edged.messages import Headers, RequestHead, ResponseHead
from edged.relay import wire
from edged.relay.flow import Flow
from edged.relay.flows import Flows, Ledger, TooMany
from edged.relay.pulse import House, Pulse, Timer
from edged.relay.repeat import Repeats
from edged.relay.tokens import Client, Register
from edged.relay.upload import Gap, Inconsistent, Upload
from edged.relay.visit import Visit
from edged.routes import split_authority

_NOT_FOUND = b"Not Found\n"
_METHODS = b"GET, HEAD, POST, PATCH, DELETE"


class Relay:
    """See the module. ``proceed`` begins the exchange of an inner request; ``pseudonym`` stands in
    Via. ``later`` arms a timer.
    """

    def __init__(
        self,
        register: Register,
        flows: Flows,
        house: House,
        proceed: Handler,
        *,
        pseudonym: bytes,
        later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self.flows = flows
        self.strangers = 0
        """Requests of nobody known."""
        self.joined = 0
        """POSTs for a flow that there was already."""
        self.draining = False
        """No new flows are taken."""
        self._house = house
        self._proceed = proceed
        self._pseudonym = pseudonym
        self._later = later
        self._register = Register(())
        self._ledgers: dict[str, Ledger] = {}
        self.configure(register)

    def configure(self, register: Register) -> None:
        """Take other clients. Flows of those who are gone, or whose token is, end; and those to
        targets that are off the list now.
        """
        for name, old in self._register.clients.items():
            new = register.clients.get(name)
            if new is None or not (
                old.tokens <= new.tokens and old.certificates == new.certificates
            ):
                self.flows.dismiss(name)
            elif new.allow != old.allow:
                for flow in tuple(self._ledgers[name].flows.values()):
                    if not new.allow.permits(*flow.target):
                        self.flows.remove(flow)
        self._register = register
        self._ledgers = {
            name: self.flows.ledger(name, client.limits)
            for name, client in register.clients.items()
        }

    def __call__(self, head: RequestHead, responder: Responder) -> RequestSink:
        """Handle one request."""
        register = self._register
        certificate = responder.certificate if register.asks_certificates else None
        client = register.identify(head.headers, certificate)
        if client is None:
            self.strangers += 1
            return _not_found(responder)
        flows = self.flows
        ledger = self._ledgers[client.name]
        if not ledger.ask(flows.clock()):
            return answer(responder, _too_fast())
        path = head.path.partition(b"?")[0]
        try:
            if path == wire.PULSE and head.method == b"POST":
                return Pulse(
                    flows,
                    ledger,
                    self._house,
                    responder,
                    permits=partial(self._permits, client.name),
                    later=self._later,
                )
            flow_id = wire.flow_id(path) if path.startswith(wire.FLOW) else None
            if flow_id is None:
                return _not_found(responder)
            return self._about_flow(client, ledger, flow_id, head, responder)
        except wire.BadFlow as error:
            return answer(responder, _bad(str(error)))
        except Inconsistent as error:
            return answer(responder, flows.bad_request(str(error)))

    def _about_flow(
        self,
        client: Client,
        ledger: Ledger,
        flow_id: bytes,
        head: RequestHead,
        responder: Responder,
    ) -> RequestSink:
        said, fields = wire.control(head.headers)
        flow = ledger.flows.get(flow_id)
        method = head.method
        if method == b"DELETE":
            if flow is not None:
                self.flows.remove(flow)
            else:
                self.flows.bury(ledger, flow_id)
            return _plain(responder, 204, [])
        if method == b"POST" and flow is None:
            return self._open(client, ledger, flow_id, head, responder, said, fields)
        if method not in (b"POST", b"GET", b"PATCH", b"HEAD"):
            return answer(responder, _bad_method())
        if flow is None:
            return answer(responder, _gone(self.flows.used(ledger, flow_id)))
        if said.ack is not None:
            flow.acknowledge(said.ack)
        if method == b"HEAD":
            self.flows.touch(flow)
            return _plain(responder, 204, flow.description())
        self.joined += method == b"POST"
        return self._visit(flow, head, responder, said)

    def _permits(self, name: str, host: str, port: int) -> bool:
        """Whether the client of this name may go there now."""
        client = self._register.clients.get(name)
        return client is not None and client.allow.permits(host, port)

    # -- opening ----------------------------------------------------------------------------------

    def _open(
        self,
        client: Client,
        ledger: Ledger,
        flow_id: bytes,
        head: RequestHead,
        responder: Responder,
        said: wire.Control,
        fields: Headers,
    ) -> RequestSink:
        flows = self.flows
        if flows.used(ledger, flow_id) or said.upload_offset or said.offset:
            # It is about a flow that was: nothing may be executed again under its id.
            return answer(responder, _gone(flows.used(ledger, flow_id)))
        if head.early:
            return answer(responder, _too_early())
        inner = wire.inner_request(head, said, fields)
        target = split_authority(inner.authority, 80 if inner.scheme == b"http" else 443)
        refusal = self._judge(client, inner, *target)
        if refusal is not None:
            return answer(responder, refusal)
        if self.draining:
            return answer(responder, _full(503, "The relay is stopping."))
        dictionary = None
        if said.dictionary is not None and said.scope is not None:
            dictionary = ledger.dictionaries.get(said.scope, said.dictionary)
            if dictionary is None:
                ledger.dictionaries_missed += 1
                return answer(responder, _no_dictionary())
            if said.prefix > len(dictionary):
                raise wire.BadFlow("edged-prefix is longer than the dictionary")
        try:
            flows.admit(ledger)
        except TooMany as error:
            return answer(responder, _full(error.status, f"No further flow: {error}."))
        opaque = inner.method == b"CONNECT" or inner.upgrade is not None
        length = None if opaque else wire.body_length(head, said)
        flow = Flow(
            flows,
            ledger,
            flow_id,
            Upload(length),
            target=target,
            client=f"{client.name}@{responder.client}",
            opaque=opaque,
            switches=inner.upgrade is not None,
            acknowledges=said.ack is not None,
            accepts=said.accepts and not opaque,
        )
        if said.coded and length != 0:
            flow.decode(said, dictionary)
        flows.add(flow)
        at = None if flow.upload.complete else 0
        visit = Visit(flow, responder, offset=0, at=at, last=said.upload_complete)
        self._repeat(visit, said)
        flow.join(visit)
        flow.begin(self._proceed(inner, flow))
        _end_if_empty(visit, head)
        return visit

    def _judge(self, client: Client, inner: RequestHead, host: str, port: int) -> Answer | None:
        """Why the inner request is refused, as an answer, or ``None``."""
        if not client.allow.permits(host, port):
            return _refused(host, port)
        if has_passed(inner.headers, self._pseudonym):
            return _loop()
        return None

    # -- joining ----------------------------------------------------------------------------------

    def _visit(
        self, flow: Flow, head: RequestHead, responder: Responder, said: wire.Control
    ) -> RequestSink:
        reads = head.method != b"PATCH"
        sends = head.method == b"PATCH" or (head.method == b"POST" and not flow.upload.complete)
        offset = flow.first_wanted(said.offset)
        if reads and not flow.keeps(offset):
            return answer(responder, _not_kept(flow, said.offset))
        if head.method == b"PATCH" or sends:
            try:
                flow.upload.check(said.upload_offset, head.body_length, last=said.upload_complete)
            except Gap:
                return answer(responder, _gap(flow))
        if reads:
            flow.receives(said.offset)
        visit = Visit(
            flow,
            responder,
            offset=offset if reads else None,
            at=said.upload_offset if sends else None,
            last=said.upload_complete,
        )
        self._repeat(visit, said)
        if said.instead and reads:
            flow.supersede(visit)
        flow.join(visit)
        _end_if_empty(visit, head)
        return visit

    def _repeat(self, visit: Visit, said: wire.Control) -> None:
        """Let a visit's pieces go out more than once, if that is asked for and can be."""
        if said.repeats and visit.reads and isinstance(visit.responder, Messenger):
            visit.repeats = Repeats(visit, visit.responder, self._later)


def _end_if_empty(visit: Visit, head: RequestHead) -> None:
    """A request without a body hears no end of one."""
    if head.body_length == 0:
        visit.body_end(None)


# Answers. Strangers get the first, and only that.


def _not_found(responder: Responder) -> Answered:
    head = ResponseHead(
        404, [(b"content-type", b"text/plain"), (b"date", http_date())], len(_NOT_FOUND)
    )
    return answer(responder, (head, _NOT_FOUND))


Answer = tuple[ResponseHead, bytes]


def _plain(responder: Responder, status: int, fields: Headers) -> Answered:
    responder.head(ResponseHead(status, [(b"cache-control", b"no-store"), *fields], 0))
    responder.end()
    return ANSWERED


def _bad(text: str) -> Answer:
    return error_response(
        400,
        "bad_flow_request",
        f"The relay cannot understand this: {text}.",
        "See docs/relay.md for the fields of a flow.",
        proxy_error="http_request_error",
    )


def _bad_method() -> Answer:
    return error_response(
        405,
        "method_not_allowed",
        "A flow does not know this method.",
        f"Use one of {_METHODS.decode()}.",
        proxy_error="http_request_error",
        fields=[(b"allow", _METHODS)],
    )


def _gone(used: bool) -> Answer:
    return error_response(
        410 if used else 404,
        "flow_gone" if used else "no_such_flow",
        "The flow is over or was given up." if used else "There is no such flow.",
        "Begin another one with a POST under a new id; a relay that restarts forgets its flows.",
        proxy_error="http_request_error",
    )


def _no_dictionary() -> Answer:
    return error_response(
        412,
        "no_dictionary",
        "The dictionary of this body is not kept here (any more).",
        "Send the body again without edged-dictionary, under the same id.",
        proxy_error="http_request_error",
        fields=[(wire.UNPROCESSED, wire.TRUE)],
    )


def _too_early() -> Answer:
    return error_response(
        425,
        "too_early",
        "A request that came before the handshake was complete may be a replay.",
        "Send it again: only a flow that there is already may be joined in 0-RTT.",
        proxy_error="http_request_denied",
    )


def _gap(flow: Flow) -> Answer:
    return error_response(
        409,
        "upload_gap",
        f"{flow.upload.offset} bytes of the request are here; those up to this one's are missing.",
        "Send from upload-offset on.",
        proxy_error="http_request_error",
        fields=flow.description(),
    )


def _not_kept(flow: Flow, offset: int) -> Answer:
    journal = flow.journal
    return error_response(
        416,
        "not_kept",
        f"The response is kept from byte {journal.start} to {journal.end}, not from {offset}.",
        "Ask for less than the journal holds, or acknowledge (edged-ack) what has arrived.",
        proxy_error="http_request_error",
        fields=flow.description(),
    )


def _refused(host: str, port: int) -> Answer:
    return error_response(
        403,
        "target_not_allowed",
        f"This client may not go to {host}, port {port}.",
        "Add it to the client's `allow` in relay.yaml.",
        proxy_error="http_request_denied",
        fields=[(wire.UNPROCESSED, wire.TRUE)],
    )


def _loop() -> Answer:
    return error_response(
        508,
        "loop",
        "This request has come through this relay before.",
        "The target leads back to the relay: check edged-target.",
        proxy_error="proxy_loop_detected",
        fields=[(wire.UNPROCESSED, wire.TRUE)],
    )


def _too_fast() -> Answer:
    return error_response(
        429,
        "too_many_requests",
        "This client asks more often than its requests_per_s.",
        "Wait a second, or raise the limit in relay.yaml.",
        proxy_error="http_request_denied",
        fields=[(b"retry-after", b"1"), (wire.UNPROCESSED, wire.TRUE)],
    )


def _full(status: int, text: str) -> Answer:
    return error_response(
        status,
        "too_many_flows",
        text,
        "DELETE flows that are not needed, or raise the limit in relay.yaml.",
        proxy_error="http_request_denied",
        fields=[(b"retry-after", b"1"), (wire.UNPROCESSED, wire.TRUE)],
    )
