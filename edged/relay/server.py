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
from edged.headers import answer, has_passed
from edged.messages import Headers, RequestHead
from edged.relay import answers, wire
from edged.relay.flow import Flow
from edged.relay.flows import Flows, Ledger, TooMany
from edged.relay.pulse import House, Pulse, Timer
from edged.relay.repeat import Repeats
from edged.relay.tokens import Client, Register
from edged.relay.upload import Gap, Inconsistent, Upload
from edged.relay.visit import Visit
from edged.routes import split_authority


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
            return answers.not_found(responder)
        flows = self.flows
        ledger = self._ledgers[client.name]
        if not ledger.ask(flows.clock()):
            return answer(responder, answers.too_fast())
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
                return answers.not_found(responder)
            return self._about_flow(client, ledger, flow_id, head, responder)
        except wire.BadFlow as error:
            return answer(responder, answers.bad(str(error)))
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
            return answers.plain(responder, 204, [])
        if method == b"POST" and flow is None:
            return self._open(client, ledger, flow_id, head, responder, said, fields)
        if method not in (b"POST", b"GET", b"PATCH", b"HEAD"):
            return answer(responder, answers.bad_method())
        if flow is None:
            return answer(responder, answers.gone(self.flows.used(ledger, flow_id)))
        if said.ack is not None:
            flow.acknowledge(said.ack)
        if method == b"HEAD":
            self.flows.touch(flow)
            return answers.plain(responder, 204, flow.description())
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
            return answer(responder, answers.gone(flows.used(ledger, flow_id)))
        if head.early:
            return answer(responder, answers.too_early())
        inner = wire.inner_request(head, said, fields)
        target = split_authority(inner.authority, 80 if inner.scheme == b"http" else 443)
        refusal = self._judge(client, inner, *target)
        if refusal is not None:
            return answer(responder, refusal)
        if self.draining:
            return answer(responder, answers.full(503, "The relay is stopping."))
        dictionary = None
        if said.dictionary is not None and said.scope is not None:
            dictionary = ledger.dictionaries.get(said.scope, said.dictionary)
            if dictionary is None:
                ledger.dictionaries_missed += 1
                return answer(responder, answers.no_dictionary())
            if said.prefix > len(dictionary):
                raise wire.BadFlow("edged-prefix is longer than the dictionary")
        try:
            flows.admit(ledger)
        except TooMany as error:
            return answer(responder, answers.full(error.status, f"No further flow: {error}."))
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

    def _judge(
        self, client: Client, inner: RequestHead, host: str, port: int
    ) -> answers.Answer | None:
        """Why the inner request is refused, as an answer, or ``None``."""
        if not client.allow.permits(host, port):
            return answers.refused(host, port)
        if has_passed(inner.headers, self._pseudonym):
            return answers.loop()
        return None

    # -- joining ----------------------------------------------------------------------------------

    def _visit(
        self, flow: Flow, head: RequestHead, responder: Responder, said: wire.Control
    ) -> RequestSink:
        reads = head.method != b"PATCH"
        sends = head.method == b"PATCH" or (head.method == b"POST" and not flow.upload.complete)
        offset = flow.first_wanted(said.offset)
        if reads and not flow.keeps(offset):
            return answer(responder, answers.not_kept(flow, said.offset))
        if head.method == b"PATCH" or sends:
            try:
                flow.upload.check(said.upload_offset, head.body_length, last=said.upload_complete)
            except Gap:
                return answer(responder, answers.gap(flow))
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
