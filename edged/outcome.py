"""What a response head says of its endpoint, and what a failure is called towards the client."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

from edged.messages import ResponseHead, header
from policies.model import Failure, Outcome, Ranking

_SERVER_FAULTS = frozenset({500, 502, 504})
_OVERLOADED = 529  # not registered; Anthropic's "overloaded_error"


def judge(head: ResponseHead) -> tuple[Outcome, float | None]:
    """The outcome that a final response stands for, and Retry-After in seconds if it is BUSY.

    429 and overload are an endpoint that answers: it backs off, nobody is blamed. Other 4xx are
    the request's affair.
    """
    status = head.status
    if status < 429:
        return Outcome.OK, None
    if status in (429, 503, _OVERLOADED):
        retry_after_s = parse_retry_after(header(head.headers, b"retry-after"))
        if status == 503 and retry_after_s is None:
            return Outcome.HTTP_ERROR, None
        return Outcome.BUSY, retry_after_s
    return (Outcome.HTTP_ERROR if status in _SERVER_FAULTS else Outcome.OK), None


def parse_retry_after(value: bytes | None) -> float | None:
    """Seconds from Retry-After (RFC 9110 section 10.2.3); ``None`` if absent or malformed."""
    if value is None:
        return None
    text = value.decode("latin-1").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


_ERROR_TYPES = {
    Outcome.DNS: "dns_error",
    Outcome.NO_NAME: "dns_error",
    Outcome.UNREACHABLE: "destination_ip_unroutable",
    Outcome.REFUSED: "connection_refused",
    Outcome.RESET: "connection_terminated",
    Outcome.TLS: "tls_protocol_error",
    Outcome.PROTOCOL: "http_protocol_error",
    Outcome.TIMEOUT: "connection_timeout",
    Outcome.FORBIDDEN: "destination_ip_prohibited",
}


_MOST_NAMED = 4


def cause(failure: Failure, ranking: Ranking) -> str:
    """Why an exchange gets no answer: what its last attempt died of, unless that was the silence of
    which every path is DOWN. What an attempt says in the dark (no handshake ...) leads astray then.
    """
    if not ranking.order or any(candidate.filtered != "down" for candidate in ranking.order):
        return failure.detail
    if failure.outcome is not Outcome.TIMEOUT:
        return f"every path is DOWN; the last one tried: {failure.detail}"
    states = [candidate.state for candidate in ranking.order]
    said = [f"{state.path.name} ({state.reason})" for state in states if state.reason]
    if not said:
        return failure.detail
    more = ["..."] if len(said) > _MOST_NAMED else []
    return "every path is DOWN: " + "; ".join(said[:_MOST_NAMED] + more)


def error_type(failure: Failure, status: int) -> str:
    """The Proxy-Status error type (RFC 9209 section 2.3) for giving up with ``status``."""
    if status == 503:
        return "destination_unavailable"
    if status == 504 and not failure.unprocessed:
        return "http_response_timeout"
    return _ERROR_TYPES.get(failure.outcome, "proxy_internal_error")
