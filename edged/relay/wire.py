"""What a flow looks like in HTTP: the fields, and inner messages as outer ones. Both sides use it.

A request about a flow carries the inner request's fields and body as its own, a response about it
the inner response's status, fields and body. What must be said besides stands in a few fields:

================  =======  ==========================================================
field             of       meaning
================  =======  ==========================================================
edged-target      request  where the inner request goes: a URL, or host:port for CONNECT
edged-method      request  its method; the outer one (POST) if it is missing
edged-upgrade     both     the protocol asked for, or switched to, by the inner message
edged-offset      both     the offset of the first response byte wanted, or sent
edged-ack         request  response bytes that will never be asked for again
edged-status      answer   the inner status, where HTTP/2 has none like it: 101
edged-unprocessed answer   ?1: the relay answers itself, and the origin saw nothing of it
upload-offset     both     the offset of the first request byte sent; how many were taken
upload-complete   both     ?0: more of the body will follow in other requests
upload-length     request  bytes of the whole request body
edged-coding      both     zstd: the body here is coded; offsets and upload-length count coded bytes
edged-dictionary  request  the SHA-256 of the earlier body that it was coded with
edged-prefix      request  so much of the dictionary is the beginning of the body, and not coded
edged-scope       request  a word: bodies are kept, and found, as dictionaries under it only
edged-length      request  bytes of a coded request body when it is decoded
edged-accept      request  zstd: the response may be coded
edged-repeat      request  ?1: small pieces of the response may come once more as datagrams (h3)
edged-instead     request  ?1: what is left of the response comes here and over no other visit
edged-inner-NAME  both     an inner field that would be taken for one of these
================  =======  ==========================================================

A response with ``edged-offset`` is the inner response; any other is the relay's own.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from edged.downstream.fields import BadMessage, authority, valid_target
from edged.messages import Headers, RequestHead, ResponseHead
from edged.routes import split_authority

ROOT = b"/.well-known/edged/"
FLOW = ROOT + b"flow/"
PULSE = ROOT + b"pulse"

ACCEPT = b"edged-accept"
ACK = b"edged-ack"
CODING = b"edged-coding"
DICTIONARY = b"edged-dictionary"
INSTEAD = b"edged-instead"
LENGTH = b"edged-length"
METHOD = b"edged-method"
OFFSET = b"edged-offset"
PREFIX = b"edged-prefix"
REPEAT = b"edged-repeat"
SCOPE = b"edged-scope"
STATUS = b"edged-status"
TARGET = b"edged-target"
UNPROCESSED = b"edged-unprocessed"
UPGRADE = b"edged-upgrade"
UPLOAD_COMPLETE = b"upload-complete"
UPLOAD_LENGTH = b"upload-length"
UPLOAD_OFFSET = b"upload-offset"
AUTHORIZATION = b"proxy-authorization"
"""Carries the relay's token (Bearer): Authorization is the inner request's."""

INNER = b"edged-inner-"
ZSTD = b"zstd"
TRUE, FALSE = b"?1", b"?0"

_OWN = frozenset(
    (
        ACCEPT,
        ACK,
        CODING,
        DICTIONARY,
        INSTEAD,
        LENGTH,
        METHOD,
        OFFSET,
        PREFIX,
        REPEAT,
        SCOPE,
        STATUS,
        TARGET,
        UNPROCESSED,
        UPGRADE,
        UPLOAD_COMPLETE,
        UPLOAD_LENGTH,
        UPLOAD_OFFSET,
        AUTHORIZATION,
    )
)
_CONTENT_LENGTH = INNER + b"content-length"
_ID = re.compile(rb"[0-9a-f]{32}")
_SHA256 = re.compile(rb"[0-9a-f]{64}")
_WORD = re.compile(rb"[!-~]{1,128}")
_NUMBER = re.compile(rb"[0-9]{1,18}")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_URL = re.compile(rb"(https?)://([^/?#]+)(/[^#]*|\?[^#]*)?")
_PORTS = {b"https": b":443", b"http": b":80"}


class BadFlow(Exception):
    """A request about a flow that cannot be understood; the text says why (400)."""


class Control(NamedTuple):
    """What a request says to the relay itself."""

    target: bytes | None = None
    method: bytes | None = None
    upgrade: bytes | None = None
    offset: int = 0
    ack: int | None = None
    upload_offset: int = 0
    upload_complete: bool = True
    upload_length: int | None = None
    coded: bool = False
    dictionary: bytes | None = None
    prefix: int = 0
    scope: bytes | None = None
    length: int | None = None
    accepts: bool = False
    repeats: bool = False
    instead: bool = False


class InnerResponse(NamedTuple):
    """An inner response's head as its client reads it."""

    head: ResponseHead
    offset: int
    """Of the first byte that follows."""
    coded: bool
    """The bytes are a zstd stream, and the offset is one in that."""


def flow_path(flow_id: bytes) -> bytes:
    """The path of the flow with this id of 16 bytes."""
    return FLOW + flow_id.hex().encode()


def flow_id(path: bytes) -> bytes | None:
    """The id in a flow's path, or ``None`` if there is no valid one."""
    text = path[len(FLOW) :]
    return bytes.fromhex(text.decode()) if _ID.fullmatch(text) else None


def control(headers: Headers) -> tuple[Control, Headers]:
    """What is said to the relay, and the inner request's fields. Raises `BadFlow`."""
    inner: Headers = []
    own: dict[bytes, bytes] = {}
    for field in headers:
        name, value = field
        if name in _OWN:
            if name in own and own[name] != value:
                raise BadFlow(f"{name.decode()} is given twice")
            own[name] = value
        else:
            inner.append((_unescaped(name), value) if name.startswith(INNER) else field)
    if not own.keys() - {AUTHORIZATION}:
        return _NOTHING, inner
    return Control(
        own.get(TARGET),
        own.get(METHOD),
        own.get(UPGRADE),
        _number(own, OFFSET) or 0,
        _number(own, ACK),
        _number(own, UPLOAD_OFFSET) or 0,
        _boolean(own, UPLOAD_COMPLETE),
        _number(own, UPLOAD_LENGTH),
        _is_zstd(own, CODING),
        _digest(own),
        _prefix(own),
        _scope(own),
        _number(own, LENGTH),
        _is_zstd(own, ACCEPT),
        _boolean(own, REPEAT, FALSE),
        _boolean(own, INSTEAD, FALSE),
    ), inner


_NOTHING = Control()


def _number(own: dict[bytes, bytes], name: bytes) -> int | None:
    value = own.get(name)
    if value is None:
        return None
    if not _NUMBER.fullmatch(value):
        raise BadFlow(f"{name.decode()} is not a number of bytes")
    return int(value)


def _boolean(own: dict[bytes, bytes], name: bytes, missing: bytes = TRUE) -> bool:
    value = own.get(name, missing)
    if value not in (TRUE, FALSE):
        raise BadFlow(f"{name.decode()} is neither ?1 nor ?0")
    return value == TRUE


def _is_zstd(own: dict[bytes, bytes], name: bytes) -> bool:
    value = own.get(name)
    if value not in (None, ZSTD):
        raise BadFlow(f"{name.decode()} is not zstd")
    return value is not None


def _digest(own: dict[bytes, bytes]) -> bytes | None:
    value = own.get(DICTIONARY)
    if value is None:
        return None
    if not _SHA256.fullmatch(value) or CODING not in own or SCOPE not in own:
        raise BadFlow("edged-dictionary is a SHA-256 and needs edged-coding and edged-scope")
    return bytes.fromhex(value.decode())


def _prefix(own: dict[bytes, bytes]) -> int:
    prefix = _number(own, PREFIX) or 0
    if prefix and DICTIONARY not in own:
        raise BadFlow("edged-prefix needs edged-dictionary")
    return prefix


def _scope(own: dict[bytes, bytes]) -> bytes | None:
    value = own.get(SCOPE)
    if value is not None and not _WORD.fullmatch(value):
        raise BadFlow("edged-scope is not a word")
    return value


def inner_request(head: RequestHead, said: Control, fields: Headers) -> RequestHead:
    """The inner request of an opening POST. Raises `BadFlow`."""
    if said.target is None:
        raise BadFlow("edged-target is missing: the URL that the request is for")
    method = said.method or head.method
    if not _TOKEN.fullmatch(method):
        raise BadFlow("edged-method is not a method")
    if method == b"TRACE":
        raise BadFlow("TRACE would show a request's secrets and is not served")
    if said.coded and (method == b"CONNECT" or said.upgrade is not None):
        raise BadFlow("opaque bytes are not coded")
    if method == b"CONNECT":
        return RequestHead(method, b"", _host_port(said.target), b"", fields, version=head.version)
    scheme, target, path = _url(said.target)
    length = said.length if said.coded else body_length(head, said)
    if said.upgrade is not None:
        if not _TOKEN.fullmatch(said.upgrade):
            raise BadFlow("edged-upgrade is not a protocol's name")
        length = 0
    return RequestHead(
        method,
        scheme,
        target,
        path,
        fields,
        length,
        version=head.version,
        absolute_form=True,
        upgrade=said.upgrade,
    )


def body_length(head: RequestHead, said: Control) -> int | None:
    """Of the whole body as it is sent, as far as its first part tells. Raises `BadFlow`."""
    known = head.body_length if said.upload_complete else None
    if said.upload_length is None:
        return known
    if known is not None and known != said.upload_length:
        raise BadFlow(f"upload-length is {said.upload_length}, but the body has {known} bytes")
    return said.upload_length


def _url(target: bytes) -> tuple[bytes, bytes, bytes]:
    match = _URL.fullmatch(target)
    if match is None:
        raise BadFlow("edged-target is not a URL, as https://api.example.com/v1/models")
    scheme, host, path = match[1], match[2], match[3] or b"/"
    if not path.startswith(b"/"):
        path = b"/" + path
    try:
        host = authority(host)
    except BadMessage as error:
        raise BadFlow("the host of edged-target is malformed") from error
    if not valid_target(path):
        raise BadFlow("the path of edged-target has characters that must be percent-encoded")
    return scheme, host.removesuffix(_PORTS[scheme]), path


def host_and_port(target: bytes) -> tuple[str, int]:
    """Where a URL leads (`split_authority`). Raises `BadFlow`."""
    scheme, host, _ = _url(target)
    return split_authority(host, 80 if scheme == b"http" else 443)


def _host_port(target: bytes) -> bytes:
    try:
        host = authority(target)
    except BadMessage as error:
        raise BadFlow("the host of edged-target is malformed") from error
    port = host.rpartition(b":")[2]
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise BadFlow("edged-target is not host:port, as CONNECT needs it")
    return host


def outer_request(inner: RequestHead, token: bytes | None = None) -> tuple[bytes, Headers]:
    """The target and all fields that a POST needs to open a flow for ``inner``."""
    if inner.method == b"CONNECT":
        target = inner.authority
    else:
        target = inner.scheme + b"://" + inner.authority + inner.path
    fields = [(TARGET, target), (METHOD, inner.method)]
    if inner.upgrade is not None:
        fields.append((UPGRADE, inner.upgrade))
    if token is not None:
        fields.append((AUTHORIZATION, b"Bearer " + token))
    fields += escaped(inner.headers)
    return target, fields


def outer_response(
    inner: ResponseHead, offset: int, *, unprocessed: bool = False, coded: bool = False
) -> ResponseHead:
    """The head of a response that continues ``inner``'s body from ``offset``.

    ``unprocessed``: the relay made it itself, and no origin saw anything of the request.
    ``coded``: the body is a zstd stream; its length is not known.
    """
    status, length = inner.status, inner.body_length
    fields = escaped(inner.headers)
    if status == 101:
        status, length = 200, None
        fields = [field for field in fields if field[0] != b"connection"]
        fields = [(UPGRADE if n == b"upgrade" else n, value) for n, value in fields]
        fields.append((STATUS, b"101"))
    if unprocessed:
        fields.append((UNPROCESSED, TRUE))
    fields.append((OFFSET, b"%d" % offset))
    if coded:
        fields.append((CODING, ZSTD))
        if length is not None:
            fields.append((_CONTENT_LENGTH, b"%d" % length))
        length = None
    elif length is not None:
        if inner.declared_length is not None and length != inner.declared_length:
            fields.append((_CONTENT_LENGTH, b"%d" % inner.declared_length))
        length -= offset
    return ResponseHead(status, fields, length, reason=inner.reason, version=inner.version)


def inner_response(outer: ResponseHead) -> InnerResponse | None:
    """The inner response, or ``None``: it is the relay's own. Raises `BadFlow`."""
    own: dict[bytes, bytes] = {}
    fields: Headers = []
    for field in outer.headers:
        name, value = field
        if name in _OWN or name == _CONTENT_LENGTH:
            own[name] = value
        else:
            fields.append((_unescaped(name), value) if name.startswith(INNER) else field)
    offset = _number(own, OFFSET)
    if offset is None:
        return None
    length = outer.body_length
    head = ResponseHead(
        outer.status,
        fields,
        None if length is None else length + offset,
        reason=outer.reason,
        version=outer.version,
        declared_length=outer.declared_length,
    )
    coded = _is_zstd(own, CODING)
    declared = _number(own, _CONTENT_LENGTH)
    if coded:
        head.body_length = declared
    elif declared is not None:
        head.declared_length = declared
    if own.get(STATUS) == b"101":
        head.status, head.body_length = 101, None
        if UPGRADE in own:
            fields.append((b"upgrade", own[UPGRADE]))
    return InnerResponse(head, offset, coded)


def escaped(headers: Headers) -> Headers:
    """``headers`` with those renamed that would be taken for the flow's own."""
    return [
        (INNER + field[0], field[1]) if field[0] in _OWN or field[0].startswith(INNER) else field
        for field in headers
    ]


def _unescaped(name: bytes) -> bytes:
    """The inner name. Only what `escaped` renames: other names could frame or route a message."""
    inner = name[len(INNER) :]
    if inner not in _OWN and not inner.startswith(INNER):
        raise BadFlow(f"{name.decode()} is for fields that the relay would take for its own")
    return inner
