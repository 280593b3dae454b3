"""Who is known, by what, and by nothing less."""

import hashlib

import pytest

from edged.relay.flows import ClientLimits
from edged.relay.targets import AllowList
from edged.relay.tokens import Client, Register


def sha(text):
    return hashlib.sha256(text).digest()


def client(name, tokens=(), certificates=()):
    return Client(
        name,
        frozenset(map(sha, tokens)),
        frozenset(map(sha, certificates)),
        AllowList([]),
        ClientLimits(),
    )


REGISTER = Register(
    [
        client("by-token", [b"alpha", b"beta"]),
        client("by-certificate", [], [b"DER1"]),
        client("by-both", [b"gamma"], [b"DER2"]),
    ]
)


@pytest.mark.parametrize(
    ("field", "certificate", "name"),
    [
        (b"Bearer alpha", None, "by-token"),
        (b"bearer  beta ", None, "by-token"),
        (b"Bearer alpha", b"DER1", "by-token"),
        (b"Basic alpha", None, None),
        (b"Bearer alph", None, None),
        (b"Bearer alphaa", None, None),
        (b"Bearer ", None, None),
        (b"Bearer", None, None),
        (b"alpha", None, None),
        (None, None, None),
        (None, b"DER1", "by-certificate"),
        (b"Bearer wrong", b"DER1", "by-certificate"),
        (None, b"DER2", None),
        (b"Bearer gamma", None, None),
        (b"Bearer gamma", b"DER1", None),
        (b"Bearer gamma", b"DER2", "by-both"),
        (b"Bearer \xff", b"", None),
    ],
)
def test_who_is_who(field, certificate, name):
    headers = [(b"authorization", b"Bearer alpha")]
    if field is not None:
        headers.append((b"proxy-authorization", field))
    found = REGISTER.identify(headers, certificate)
    assert (None if found is None else found.name) == name


def test_nobody_is_known_to_an_empty_register():
    assert Register([]).identify([(b"proxy-authorization", b"Bearer ")], None) is None


def test_tokens_are_not_shown():
    assert "alpha" not in repr(REGISTER.clients)
    assert sha(b"alpha").hex() not in repr(REGISTER.clients)
    assert repr(sha(b"alpha")) not in repr(REGISTER.clients)
