"""What the end of a QUIC connection means for those who were on it."""

from __future__ import annotations

import ssl

from edged.upstream import h3_frames as h3
from policies.model import Failure, Outcome

REASON_CHARACTERS = 120


def end_of(code: int, frame_type: int | None, reason: str, host: str) -> Failure:
    """What a connection's end means (RFC 9000 section 20, RFC 9114 section 8.1)."""
    # The peer's words end up in logs and header fields.
    reason = "".join(c for c in reason[:REASON_CHARACTERS] if c.isascii() and c.isprintable())
    if reason.lower() == "idle timeout":
        return Failure(Outcome.TIMEOUT, "the connection timed out: nothing came from the server")
    if frame_type is None:
        name = h3.ERROR_NAMES.get(code, f"code {code:#x}")
        outcome = Outcome.RESET if code in (h3.NO_ERROR, h3.REQUEST_CANCELLED) else Outcome.PROTOCOL
        return Failure(
            outcome, f"the connection ended: {name}" + (f" ({reason})" if reason else "")
        )
    if 0x100 <= code < 0x200:
        return Failure(Outcome.TLS, f"TLS with {host} failed: {reason or _alert(code - 0x100)}")
    outcome = Outcome.RESET if code == 0 else Outcome.PROTOCOL
    return Failure(outcome, f"the connection ended with QUIC error {code:#x} {reason}".rstrip())


def _alert(number: int) -> str:
    try:
        name = ssl.AlertDescription(number).name
    except ValueError:
        return f"alert {number}"
    return "alert " + name.removeprefix("ALERT_DESCRIPTION_").lower()
