"""Header fields that edged itself reads, adds or removes, and the answers of its own.

Via (RFC 9110 section 7.6.3), Proxy-Status (RFC 9209), request ids, and error bodies that say what
to do.
"""

from __future__ import annotations

import itertools
import json
import secrets
import time
from email.utils import formatdate
from typing import Final

from edged.downstream.base import Responder
from edged.messages import Headers, ResponseHead

NAME: Final = "edged"
"""Who answers, in Proxy-Status and Server."""
REQUEST_ID: Final = b"edged-request-id"

NOT_FORWARDED: Final = frozenset((b"proxy-authorization",))
"""Meant for this proxy (RFC 9110 section 11.7.2). A client's Via stays: ours is added to it."""

_next_id: Final = map(f"{secrets.token_hex(4)}-%x".__mod__, itertools.count(1)).__next__


def new_request_id() -> str:
    """An id that is unique over daemons and restarts; short enough to be typed."""
    return _next_id()


def via_value(version: bytes, pseudonym: bytes) -> bytes:
    """One Via member: the protocol the message was received with, and who received it."""
    return (version if b"." in version else version + b".0") + b" " + pseudonym


def has_passed(headers: Headers, pseudonym: bytes) -> bool:
    """Whether Via says that this daemon has seen the message before (RFC 9110 section 7.6.3)."""
    for name, value in headers:
        if name == b"via" and pseudonym in value:
            for member in value.split(b","):
                words = member.split()
                if len(words) > 1 and words[1] == pseudonym:
                    return True
    return False


_date = (0, b"")


def http_date() -> bytes:
    """Now as IMF-fixdate (RFC 9110 section 5.6.7), rendered once a second."""
    global _date
    second = int(time.time())
    if _date[0] != second:
        _date = (second, formatdate(second, usegmt=True).encode())
    return _date[1]


def quoted(text: str) -> str:
    """An sf-string (RFC 8941 section 3.3.3); what it can't hold becomes ``?``."""
    safe = "".join(c if " " <= c <= "~" else "?" for c in text)
    escaped = safe.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def proxy_status(
    *,
    error: str | None = None,
    line: str | None = None,
    endpoint: str | None = None,
    details: str | None = None,
) -> bytes:
    """One Proxy-Status member (RFC 9209). ``error`` is a type from its section 2.3.

    ``line`` and ``endpoint`` are parameters of edged's own.
    """
    member = NAME
    if error is not None:
        member += f"; error={error}"
    if line is not None:
        member += f"; line={quoted(line)}"
    if endpoint is not None:
        member += f"; endpoint={quoted(endpoint)}"
    if details is not None:
        member += f"; details={quoted(details)}"
    return member.encode()


def error_response(
    status: int,
    code: str,
    message: str,
    hint: str = "",
    *,
    request_id: str = "",
    proxy_error: str | None = None,
    line: str | None = None,
    endpoint: str | None = None,
    fields: Headers | None = None,
) -> tuple[ResponseHead, bytes]:
    """An answer of edged's own: head and JSON body.

    ``code`` is a stable word for programs, ``message`` says what is wrong, ``hint`` what to do.
    ``proxy_error`` is the RFC 9209 error type; ``fields`` are added (Allow, Retry-After ...).
    """
    request_id = request_id or new_request_id()
    error = {"code": code, "message": message, "hint": hint, "request_id": request_id}
    body = json.dumps({"error": error}, ensure_ascii=False).encode() + b"\n"
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"cache-control", b"no-store"),
        (b"date", http_date()),
        (
            b"proxy-status",
            proxy_status(error=proxy_error, line=line, endpoint=endpoint, details=code),
        ),
        (REQUEST_ID, request_id.encode()),
    ]
    if fields:
        headers.extend(fields)
    return ResponseHead(status, headers, len(body)), body


class Answered:
    """The sink of a request that has been answered: whatever still comes is dropped."""

    __slots__ = ()

    def body(self, data: bytes) -> None:
        """Dropped."""

    def body_end(self, trailers: Headers | None) -> None:
        """Dropped."""

    def gone(self) -> None:
        """Nothing is left to stop."""

    def pause_response(self) -> None:
        """Nothing is left to send."""

    def resume_response(self) -> None:
        """Nothing is left to send."""


ANSWERED = Answered()


def answer(responder: Responder, response: tuple[ResponseHead, bytes]) -> Answered:
    """Send a complete answer (as from `error_response`); the sink to return to the connection."""
    head, body = response
    responder.head(head)
    responder.data(body)
    responder.end()
    return ANSWERED
