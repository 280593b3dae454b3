"""What the end of a connection means: the operating system's errors as outcomes and words."""

from __future__ import annotations

import errno
import ssl

from policies.model import Outcome

_OUTCOMES = {
    errno.ETIMEDOUT: Outcome.TIMEOUT,
    errno.ECONNREFUSED: Outcome.REFUSED,
    errno.ENETUNREACH: Outcome.UNREACHABLE,
    errno.EHOSTUNREACH: Outcome.UNREACHABLE,
    errno.ENETDOWN: Outcome.UNREACHABLE,
    errno.EADDRNOTAVAIL: Outcome.UNREACHABLE,
    errno.ENODEV: Outcome.UNREACHABLE,
}


def outcome_of(error: BaseException | None) -> Outcome:
    """What a transport's end means; ``None`` is an orderly FIN, which is a reset to a stream."""
    if isinstance(error, ssl.SSLError):
        return Outcome.TLS
    if isinstance(error, TimeoutError):
        return Outcome.TIMEOUT
    if isinstance(error, OSError) and error.errno is not None:
        return _OUTCOMES.get(error.errno, Outcome.RESET)
    return Outcome.RESET


def describe(error: BaseException | None) -> str:
    """A short text for people: the operating system's words, without addresses or classes."""
    if error is None:
        return "closed by the server"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS error: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
