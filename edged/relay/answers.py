"""What the relay itself answers. Strangers get `not_found`, and only that."""

from __future__ import annotations

from edged.downstream.base import Responder
from edged.headers import ANSWERED, Answered, answer, error_response, http_date
from edged.messages import Headers, ResponseHead
from edged.relay import wire
from edged.relay.flow import Flow

Answer = tuple[ResponseHead, bytes]
_NOT_FOUND = b"Not Found\n"
_METHODS = b"GET, HEAD, POST, PATCH, DELETE"


def not_found(responder: Responder) -> Answered:
    """To everybody who is not known, and for what there is not."""
    head = ResponseHead(
        404, [(b"content-type", b"text/plain"), (b"date", http_date())], len(_NOT_FOUND)
    )
    return answer(responder, (head, _NOT_FOUND))


def plain(responder: Responder, status: int, fields: Headers) -> Answered:
    """Fields are all there is to say."""
    responder.head(ResponseHead(status, [(b"cache-control", b"no-store"), *fields], 0))
    responder.end()
    return ANSWERED


def bad(text: str) -> Answer:
    """``text`` is what cannot be understood."""
    return error_response(
        400,
        "bad_flow_request",
        f"The relay cannot understand this: {text}.",
        "See docs/relay.md for the fields of a flow.",
        proxy_error="http_request_error",
    )


def bad_method() -> Answer:
    """None that a flow knows."""
    return error_response(
        405,
        "method_not_allowed",
        "A flow does not know this method.",
        f"Use one of {_METHODS.decode()}.",
        proxy_error="http_request_error",
        fields=[(b"allow", _METHODS)],
    )


def gone(used: bool) -> Answer:
    """The flow was, or (not ``used``) never was."""
    return error_response(
        410 if used else 404,
        "flow_gone" if used else "no_such_flow",
        "The flow is over or was given up." if used else "There is no such flow.",
        "Begin another one with a POST under a new id; a relay that restarts forgets its flows.",
        proxy_error="http_request_error",
    )


def too_early() -> Answer:
    """A POST in 0-RTT that would open a flow."""
    return error_response(
        425,
        "too_early",
        "A request that came before the handshake was complete may be a replay.",
        "Send it again: only a flow that there is already may be joined in 0-RTT.",
        proxy_error="http_request_denied",
    )


def gap(flow: Flow) -> Answer:
    """Request bytes are missing in between."""
    return error_response(
        409,
        "upload_gap",
        f"{flow.upload.offset} bytes of the request are here; those up to this one's are missing.",
        "Send from upload-offset on.",
        proxy_error="http_request_error",
        fields=flow.description(),
    )


def not_kept(flow: Flow, offset: int) -> Answer:
    """Response bytes that are not there."""
    journal = flow.journal
    return error_response(
        416,
        "not_kept",
        f"The response is kept from byte {journal.start} to {journal.end}, not from {offset}.",
        "Ask for less than the journal holds, or acknowledge (edged-ack) what has arrived.",
        proxy_error="http_request_error",
        fields=flow.description(),
    )


def no_dictionary() -> Answer:
    """The body cannot be decoded without it."""
    return _unprocessed(
        412,
        "no_dictionary",
        "The dictionary of this body is not kept here (any more).",
        "Send the body again without edged-dictionary, under the same id.",
        "http_request_error",
    )


def refused(host: str, port: int) -> Answer:
    """The target is not on the client's list."""
    return _unprocessed(
        403,
        "target_not_allowed",
        f"This client may not go to {host}, port {port}.",
        "Add it to the client's `allow` in relay.yaml.",
    )


def loop() -> Answer:
    """The request was here before."""
    return _unprocessed(
        508,
        "loop",
        "This request has come through this relay before.",
        "The target leads back to the relay: check edged-target.",
        "proxy_loop_detected",
    )


def too_fast() -> Answer:
    """More requests than the client's rate."""
    return _unprocessed(
        429,
        "too_many_requests",
        "This client asks more often than its requests_per_s.",
        "Wait a second, or raise the limit in relay.yaml.",
    )


def full(status: int, text: str) -> Answer:
    """No further flow, for the time being."""
    return _unprocessed(
        status,
        "too_many_flows",
        text,
        "DELETE flows that are not needed, or raise the limit in relay.yaml.",
    )


def _unprocessed(
    status: int, word: str, text: str, hint: str, proxy_error: str = "http_request_denied"
) -> Answer:
    """No origin has seen anything of the request."""
    fields = [(wire.UNPROCESSED, wire.TRUE)]
    if status in (429, 503):
        fields.append((b"retry-after", b"1"))
    return error_response(status, word, text, hint, proxy_error=proxy_error, fields=fields)
