"""What an HTTP/1.1 client may try, and what it gets (RFC 9110, RFC 9112).

A case is refused (``status``, nothing reaches the handler, the connection closes) or served
(``served``: method, authority, target and body of exactly the requests that the handler sees).
Every case is followed on the wire by a request for ``/poison``: after a refusal it is not seen.
"""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    name: str
    data: bytes
    status: int | None = None
    served: tuple[tuple[bytes, bytes, bytes, bytes], ...] = ()
    poison: bool = True


def refused(name: str, status: int, data: bytes, **more: object) -> Case:
    return Case(name, data, status, **more)


def served(name: str, data: bytes, *requests: tuple[bytes, bytes, bytes, bytes]) -> Case:
    return Case(name, data, None, requests)


def get(fields: bytes, target: bytes = b"/") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n"


def post(fields: bytes, body: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", body)


SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
GOT = (b"GET", b"h", b"/", b"")


def got(body: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    return (b"POST", b"h", b"/", body)


# One case, one line, however long.
# fmt: off
# ruff: noqa: E501 -- the same
LENGTHS = [
    refused("both lengths", 400, post(b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    refused("both lengths, other order", 400, post(b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n", b"0\r\n\r\nX")),
    refused("both lengths, zero", 400, post(b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    refused("CL.TE", 400, post(b"Content-Length: 41\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n" + SMUGGLED)),
    refused("TE.CL", 400, post(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"26\r\n" + SMUGGLED + b"\r\n0\r\n\r\n")),
    refused("length twice, different", 400, post(b"Content-Length: 5\r\nContent-Length: 6\r\n", b"hello")),
    refused("length twice, equal", 400, post(b"Content-Length: 5\r\nContent-Length: 5\r\n", b"hello")),
    refused("length twice, other case", 400, post(b"Content-Length: 5\r\ncontent-length: 0\r\n", b"hello")),
    refused("length list, equal", 400, post(b"Content-Length: 5, 5\r\n", b"hello")),
    refused("length list, different", 400, post(b"Content-Length: 5, 0\r\n", b"hello")),
    refused("length list, empty member", 400, post(b"Content-Length: 5,\r\n", b"hello")),
    refused("length with plus", 400, post(b"Content-Length: +5\r\n", b"hello")),
    refused("length with minus", 400, post(b"Content-Length: -5\r\n", b"hello")),
    refused("length minus zero", 400, post(b"Content-Length: -0\r\n")),
    refused("length hexadecimal", 400, post(b"Content-Length: 0x5\r\n", b"hello")),
    refused("length hex digits", 400, post(b"Content-Length: a\r\n", b"0123456789")),
    refused("length octal", 400, post(b"Content-Length: 0o5\r\n", b"hello")),
    refused("length decimal point", 400, post(b"Content-Length: 5.0\r\n", b"hello")),
    refused("length exponent", 400, post(b"Content-Length: 5e0\r\n", b"hello")),
    refused("length underscore", 400, post(b"Content-Length: 1_0\r\n", b"0123456789")),
    refused("length empty", 400, post(b"Content-Length:\r\n", b"hello")),
    refused("length blank", 400, post(b"Content-Length:   \r\n", b"hello")),
    refused("length inner space", 400, post(b"Content-Length: 1 0\r\n", b"0123456789")),
    refused("length quoted", 400, post(b'Content-Length: "5"\r\n', b"hello")),
    refused("length word", 400, post(b"Content-Length: five\r\n", b"hello")),
    refused("length superscript digit", 400, post(b"Content-Length: \xb2\r\n", b"he")),
    refused("length arabic digit", 400, post("Content-Length: \u0665\r\n".encode(), b"hello")),
    refused("length beyond 64 bit", 400, post(b"Content-Length: 18446744073709551621\r\n", b"hello")),
    refused("length of 400 digits", 400, post(b"Content-Length: " + b"9" * 400 + b"\r\n", b"hello")),
    refused("length with vertical tab", 400, post(b"Content-Length: \x0b5\r\n", b"hello")),
    refused("length with NUL", 400, post(b"Content-Length: 5\x00\r\n", b"hello")),
    refused("length folded", 400, post(b"Content-Length:\r\n 5\r\n", b"hello")),
    refused("length space before colon", 400, post(b"Content-Length : 5\r\n", b"hello")),
    refused("length tab before colon", 400, post(b"Content-Length\t: 5\r\n", b"hello")),
    served("length with leading zeros", post(b"Content-Length: 005\r\n", b"hello"), got(b"hello")),
    served("length with surrounding blanks", post(b"Content-Length: \t 5 \t\r\n", b"hello"), got(b"hello")),
    served("length without blank", post(b"Content-Length:5\r\n", b"hello"), got(b"hello")),
    served("underscore is another field", post(b"Content_Length: 5\r\n"), got(b"")),
    served("GET with body", get(b"Content-Length: 5\r\n") + b"hello", (b"GET", b"h", b"/", b"hello")),
    served("body that looks like a request", post(b"Content-Length: %d\r\n" % len(SMUGGLED), SMUGGLED), got(SMUGGLED)),
]

CODINGS = [
    refused("coding xchunked", 400, post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n")),
    refused("coding chunkedx", 400, post(b"Transfer-Encoding: chunkedx\r\n", b"0\r\n\r\n")),
    refused("coding chunked twice", 400, post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n")),
    refused("coding chunked on two lines", 400, post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    refused("coding identity", 400, post(b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n")),
    refused("coding chunked, identity", 400, post(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n")),
    refused("coding identity, chunked", 501, post(b"Transfer-Encoding: identity, chunked\r\n", b"0\r\n\r\n")),
    refused("coding identity then chunked lines", 501, post(b"Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    refused("coding chunked then identity lines", 400, post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", b"0\r\n\r\n")),
    refused("coding gzip, chunked", 501, post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n")),
    refused("coding gzip", 400, post(b"Transfer-Encoding: gzip\r\n", b"0\r\n\r\n")),
    refused("coding empty", 400, post(b"Transfer-Encoding:\r\n", b"0\r\n\r\n")),
    refused("coding comma", 400, post(b"Transfer-Encoding: chunked,\r\n", b"0\r\n\r\n")),
    refused("coding leading comma", 400, post(b"Transfer-Encoding: ,chunked\r\n", b"0\r\n\r\n")),
    refused("coding quoted", 400, post(b'Transfer-Encoding: "chunked"\r\n', b"0\r\n\r\n")),
    refused("coding with parameter", 400, post(b"Transfer-Encoding: chunked;q=1\r\n", b"0\r\n\r\n")),
    refused("coding with inner space", 400, post(b"Transfer-Encoding: chun ked\r\n", b"0\r\n\r\n")),
    refused("coding with vertical tab", 400, post(b"Transfer-Encoding:\x0bchunked\r\n", b"0\r\n\r\n")),
    refused("coding with form feed", 400, post(b"Transfer-Encoding: chunked\x0c\r\n", b"0\r\n\r\n")),
    refused("coding with NUL", 400, post(b"Transfer-Encoding: chunked\x00\r\n", b"0\r\n\r\n")),
    refused("coding with DEL", 400, post(b"Transfer-Encoding: chunked\x7f\r\n", b"0\r\n\r\n")),
    refused("coding with nbsp", 400, post(b"Transfer-Encoding: \xa0chunked\r\n", b"0\r\n\r\n")),
    refused("coding folded", 400, post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n")),
    refused("coding folded with tab", 400, post(b"Transfer-Encoding:\r\n\tchunked\r\n", b"0\r\n\r\n")),
    refused("coding behind a folded field", 400, post(b"X: a\r\n Transfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    refused("coding space before colon", 400, post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n")),
    refused("coding after bare CR", 400, post(b"X: a\rTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    refused("coding after bare LF", 400, post(b"X: a\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    refused("coding line begins with blank", 400, post(b" Transfer-Encoding: chunked\r\n", b"0\r\n\r\n")),
    refused("coding in HTTP/1.0", 400, b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    served("coding upper case", post(b"TRANSFER-ENCODING: CHUNKED\r\n", b"1\r\na\r\n0\r\n\r\n"), got(b"a")),
    served("coding surrounded by tabs", post(b"Transfer-Encoding:\tchunked\t\r\n", b"0\r\n\r\n"), got(b"")),
    served("underscore is no coding", post(b"Transfer_Encoding: chunked\r\n"), got(b"")),
]

CHUNKS = [
    refused("chunk size negative", 400, chunked(b"-1\r\na\r\n0\r\n\r\n")),
    refused("chunk size plus", 400, chunked(b"+1\r\na\r\n0\r\n\r\n")),
    refused("chunk size 0x", 400, chunked(b"0x1\r\na\r\n0\r\n\r\n")),
    refused("chunk size underscore", 400, chunked(b"0_1\r\na\r\n0\r\n\r\n")),
    refused("chunk size not hex", 400, chunked(b"g\r\na\r\n0\r\n\r\n")),
    refused("chunk size empty", 400, chunked(b"\r\na\r\n0\r\n\r\n")),
    refused("chunk size blank before", 400, chunked(b" 1\r\na\r\n0\r\n\r\n")),
    refused("chunk size blank after", 400, chunked(b"1 \r\na\r\n0\r\n\r\n")),
    refused("chunk size tab after", 400, chunked(b"1\t\r\na\r\n0\r\n\r\n")),
    refused("chunk size 64 bit overflow", 400, chunked(b"10000000000000001\r\na\r\n0\r\n\r\n")),
    refused("chunk size 32 bit overflow by zeros", 400, chunked(b"0" * 40 + b"1\r\na\r\n0\r\n\r\n")),
    refused("chunk size with comma", 400, chunked(b"1,1\r\na\r\n0\r\n\r\n")),
    refused("chunk size with NUL", 400, chunked(b"1\x00\r\na\r\n0\r\n\r\n")),
    refused("chunk size bare LF", 400, chunked(b"1\na\r\n0\r\n\r\n")),
    refused("chunk size bare CR", 400, chunked(b"1\ra\r\n0\r\n\r\n")),
    refused("chunk size CR CR LF", 400, chunked(b"1\r\r\na\r\n0\r\n\r\n")),
    refused("chunk data longer than said", 400, chunked(b"1\r\nab\r\n0\r\n\r\n")),
    refused("chunk data shorter than said", 400, chunked(b"3\r\na\r\n0\r\n\r\n")),
    refused("chunk data ended by bare LF", 400, chunked(b"1\r\na\n0\r\n\r\n")),
    refused("chunk data ended by bare CR", 400, chunked(b"1\r\na\r0\r\n\r\n")),
    refused("chunk data ended by two blanks", 400, chunked(b"1\r\na  0\r\n\r\n")),
    refused("last chunk bare LF", 400, chunked(b"0\n\n")),
    refused("last chunk CRLF LF", 400, chunked(b"0\r\n\n")),
    refused("extension without name", 400, chunked(b"1;\r\na\r\n0\r\n\r\n")),
    refused("extension only equals", 400, chunked(b"1;=b\r\na\r\n0\r\n\r\n")),
    refused("extension with bare LF", 400, chunked(b"1;a\nb\r\na\r\n0\r\n\r\n")),
    refused("extension with bare CR", 400, chunked(b"1;a\rb\r\na\r\n0\r\n\r\n")),
    refused("extension with NUL", 400, chunked(b"1;a=\x00\r\na\r\n0\r\n\r\n")),
    refused("extension unclosed quote", 400, chunked(b'1;a="b\r\na\r\n0\r\n\r\n')),
    refused("extension LF in quote", 400, chunked(b'1;a="\n"\r\na\r\n0\r\n\r\n')),
    refused("extension huge", 400, chunked(b"1;" + b"a" * 100_000 + b"\r\na\r\n0\r\n\r\n")),
    refused("extensions without end", 400, chunked(b"1;" + b"a" * 100_000), poison=False),
    refused("many long extensions", 400, chunked((b"1;" + b"a" * 900 + b"\r\nx\r\n") * 200)),
    refused("trailer without colon", 400, chunked(b"0\r\nabc\r\n\r\n")),
    refused("trailer folded", 400, chunked(b"0\r\na: b\r\n c\r\n\r\n")),
    refused("trailer with bare LF", 400, chunked(b"0\r\na: b\nc: d\r\n\r\n")),
    refused("trailer with bare CR", 400, chunked(b"0\r\na: b\rc: d\r\n\r\n")),
    refused("trailer with NUL", 400, chunked(b"0\r\na: \x00\r\n\r\n")),
    refused("trailer space before colon", 400, chunked(b"0\r\na : b\r\n\r\n")),
    refused("trailers too large", 431, chunked(b"0\r\na: " + b"b" * 40_000 + b"\r\n\r\n")),
    refused("too many trailers", 431, chunked(b"0\r\n" + b"a: b\r\n" * 500 + b"\r\n")),
    served("trailer that would frame is dropped", chunked(b"0\r\nContent-Length: 99\r\nTransfer-Encoding: x\r\n\r\n"), got(b"")),
    served("extensions are ignored", chunked(b'1;a;b=c;d="e\\"\t f"\r\nx\r\n0;z\r\n\r\n'), got(b"x")),
    served("extension after bad white space", chunked(b"1 ; a = b\r\nx\r\n0\r\n\r\n"), got(b"x")),
    served("chunk sizes in both cases with zeros", chunked(b"0A\r\n0123456789\r\n00b\r\n0123456789x\r\n00\r\n\r\n"), got(b"01234567890123456789x")),
]

LINES = [
    refused("bare LF everywhere", 400, b"GET / HTTP/1.1\nHost: h\n\n"),
    refused("bare LF after request line", 400, b"GET / HTTP/1.1\nHost: h\r\n\r\n"),
    refused("bare LF after field", 400, b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n"),
    refused("empty line is LF", 400, b"GET / HTTP/1.1\r\nHost: h\r\n\n"),
    refused("bare CR everywhere", 400, b"GET / HTTP/1.1\rHost: h\r\r"),
    refused("bare CR in value", 400, get(b"X: a\rb\r\n")),
    refused("bare CR at end of value", 400, get(b"X: a\r\r\n")),
    refused("LF CR", 400, b"GET / HTTP/1.1\n\rHost: h\n\r\n\r"),
    refused("leading LF", 400, b"\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("leading blank", 400, b" GET / HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("leading CR", 400, b"\rGET / HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("NUL in value", 400, get(b"X: a\x00b\r\n")),
    refused("NUL in name", 400, get(b"X\x00: a\r\n")),
    refused("escape in value", 400, get(b"X: \x1b[31m\r\n")),
    refused("DEL in value", 400, get(b"X: \x7f\r\n")),
    refused("backspace in value", 400, get(b"X: a\x08\r\n")),
    refused("space before colon", 400, get(b"X : y\r\n")),
    refused("space in name", 400, get(b"X Y: z\r\n")),
    refused("empty name", 400, get(b": y\r\n")),
    refused("no colon", 400, get(b"nothing\r\n")),
    refused("non-ASCII name", 400, get(b"X\xe9: y\r\n")),
    refused("bracketed name", 400, get(b"X[]: y\r\n")),
    refused("quoted name", 400, get(b'"X": y\r\n')),
    refused("slash in name", 400, get(b"X/Y: z\r\n")),
    refused("at in name", 400, get(b"X@Y: z\r\n")),
    refused("folded", 400, get(b"X: a\r\n b\r\n")),
    refused("folded with tab", 400, get(b"X: a\r\n\tb\r\n")),
    refused("folded first line", 400, b"GET / HTTP/1.1\r\n Host: h\r\nHost: h\r\n\r\n"),
    refused("blank line of spaces", 400, b"GET / HTTP/1.1\r\nHost: h\r\n \r\n\r\n"),
    refused("request in a field", 400, get(b"GET /smuggled HTTP/1.1\r\n")),
    refused("huge field", 431, get(b"X: " + b"y" * 40_000 + b"\r\n")),
    refused("huge name", 431, get(b"X" * 40_000 + b": y\r\n")),
    refused("head without end", 431, b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 100_000, poison=False),
    refused("too many fields", 431, get(b"X: y\r\n" * 129)),
    served("many fields", get(b"X: y\r\n" * 127), GOT),
    served("leading empty lines", b"\r\n\r\n" + get(b""), GOT),
    served("obs-text in value", get(b"X: \xe9\xff\r\n"), GOT),
    served("empty value", get(b"X:\r\n"), GOT),
    served("colon in value", get(b"X: a:b\r\n"), GOT),
    served("odd but valid name", get(b"!#$%&'*+-.^_`|~: y\r\n"), GOT),
]

REQUEST_LINES = [
    refused("HTTP/0.9", 400, b"GET /\r\n\r\n"),
    refused("HTTP/2.0 in the request line", 505, b"GET / HTTP/2.0\r\nHost: h\r\n\r\n"),
    refused("HTTP/3.0 in the request line", 505, b"GET / HTTP/3.0\r\nHost: h\r\n\r\n"),
    refused("HTTP/0.9 in the request line", 505, b"GET / HTTP/0.9\r\nHost: h\r\n\r\n"),
    refused("HTTP/2 without minor", 400, b"GET / HTTP/2\r\nHost: h\r\n\r\n"),
    refused("HTTP/1 without minor", 400, b"GET / HTTP/1\r\nHost: h\r\n\r\n"),
    refused("HTTP/11.1", 400, b"GET / HTTP/11.1\r\nHost: h\r\n\r\n"),
    refused("HTTP/1.10", 400, b"GET / HTTP/1.10\r\nHost: h\r\n\r\n"),
    refused("http in lower case", 400, b"GET / http/1.1\r\nHost: h\r\n\r\n"),
    refused("HTTPS/1.1", 400, b"GET / HTTPS/1.1\r\nHost: h\r\n\r\n"),
    refused("ICY", 400, b"GET / ICY/1.1\r\nHost: h\r\n\r\n"),
    refused("version with comma", 400, b"GET / HTTP/1,1\r\nHost: h\r\n\r\n"),
    refused("version with superscript", 400, b"GET / HTTP/1.\xb9\r\nHost: h\r\n\r\n"),
    refused("blank after version", 400, b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n"),
    refused("two blanks", 400, b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("tab as separator", 400, b"GET\t/\tHTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("blank in target", 400, b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("no target", 400, b"GET HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("empty target", 400, b"GET  HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("method with slash", 400, b"GE/T / HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("method with colon", 400, b"GET: / HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("method non-ASCII", 400, b"G\xc3\x89T / HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("method empty", 400, b" / HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("control in target", 400, get(b"", b"/a\x01b")),
    refused("NUL in target", 400, get(b"", b"/a\x00b")),
    refused("DEL in target", 400, get(b"", b"/a\x7fb")),
    refused("tab in target", 400, get(b"", b"/a\tb")),
    refused("CR in target", 400, get(b"", b"/a\rb")),
    refused("LF in target", 400, get(b"", b"/a\nb")),
    refused("non-ASCII in target", 400, get(b"", b"/\xc3\xa9")),
    refused("fragment", 400, get(b"", b"/a#b")),
    refused("fragment in absolute-form", 400, get(b"", b"http://h/a#b")),
    refused("relative target", 400, get(b"", b"a/b")),
    refused("query alone", 400, get(b"", b"?a")),
    refused("asterisk with GET", 400, get(b"", b"*")),
    refused("authority with GET", 400, get(b"", b"h:80")),
    refused("target too long", 414, get(b"", b"/" + b"a" * 9000)),
    refused("request line without end", 414, b"GET /" + b"a" * 100_000, poison=False),
    refused("TLS ClientHello", 400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x07" * 64, poison=False),
    refused("SSH banner", 400, b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
    refused("SOCKS5 greeting", 400, b"\x05\x01\x00", poison=False),
    refused("PROXY protocol", 400, b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n"),
    served("minor version above ours", b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", GOT),
    served("unknown method", b"BREW / HTTP/1.1\r\nHost: h\r\n\r\n", (b"BREW", b"h", b"/", b"")),
    served("method is case-sensitive", b"get / HTTP/1.1\r\nHost: h\r\n\r\n", (b"get", b"h", b"/", b"")),
    served("what browsers send raw", get(b"", b"/a|b{c}?^`\\"), (b"GET", b"h", b"/a|b{c}?^`\\", b"")),
    served("double slash is a path", get(b"", b"//evil/x"), (b"GET", b"h", b"//evil/x", b"")),
]

AUTHORITIES = [
    refused("Host missing", 400, b"GET / HTTP/1.1\r\n\r\n"),
    refused("Host missing, absolute-form", 400, b"GET http://h/ HTTP/1.1\r\n\r\n"),
    refused("Host twice", 400, b"GET / HTTP/1.1\r\nHost: h\r\nHost: evil\r\n\r\n"),
    refused("Host twice, equal", 400, b"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n"),
    refused("Host twice, HTTP/1.0", 400, b"GET / HTTP/1.0\r\nHost: h\r\nHost: evil\r\n\r\n"),
    refused("Host list", 400, b"GET / HTTP/1.1\r\nHost: h, evil\r\n\r\n"),
    refused("Host with path", 400, b"GET / HTTP/1.1\r\nHost: h/evil\r\n\r\n"),
    refused("Host with user", 400, b"GET / HTTP/1.1\r\nHost: a@h\r\n\r\n"),
    refused("Host with blank", 400, b"GET / HTTP/1.1\r\nHost: h evil\r\n\r\n"),
    refused("Host with scheme", 400, b"GET / HTTP/1.1\r\nHost: http://h\r\n\r\n"),
    refused("Host with query", 400, b"GET / HTTP/1.1\r\nHost: h?x\r\n\r\n"),
    refused("Host with fragment", 400, b"GET / HTTP/1.1\r\nHost: h#x\r\n\r\n"),
    refused("Host with backslash", 400, b"GET / HTTP/1.1\r\nHost: h\\x\r\n\r\n"),
    refused("Host with NUL", 400, b"GET / HTTP/1.1\r\nHost: h\x00x\r\n\r\n"),
    refused("Host with letters as port", 400, b"GET / HTTP/1.1\r\nHost: h:http\r\n\r\n"),
    refused("Host with negative port", 400, b"GET / HTTP/1.1\r\nHost: h:-1\r\n\r\n"),
    refused("Host with port too large", 400, b"GET / HTTP/1.1\r\nHost: h:65536\r\n\r\n"),
    refused("Host with two ports", 400, b"GET / HTTP/1.1\r\nHost: h:1:2\r\n\r\n"),
    refused("Host IPv6 without brackets", 400, b"GET / HTTP/1.1\r\nHost: ::1\r\n\r\n"),
    refused("Host IPv6 unclosed", 400, b"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n"),
    refused("Host non-ASCII", 400, b"GET / HTTP/1.1\r\nHost: \xc3\xa9\r\n\r\n"),
    refused("Host space before colon", 400, b"GET / HTTP/1.1\r\nHost : h\r\n\r\n"),
    refused("Host folded", 400, b"GET / HTTP/1.1\r\nHost:\r\n h\r\n\r\n"),
    refused("Host invalid beside absolute-form", 400, b"GET http://h/ HTTP/1.1\r\nHost: a b\r\n\r\n"),
    refused("user info in target", 400, get(b"", b"http://a:b@h/")),
    refused("user info tricks the host", 400, get(b"", b"http://h@evil/")),
    refused("empty authority", 400, get(b"", b"http:///x")),
    refused("port alone", 400, get(b"", b"http://:80/")),
    refused("port too large in target", 400, get(b"", b"http://h:99999/")),
    refused("other scheme", 400, get(b"", b"ftp://h/")),
    refused("file scheme", 400, get(b"", b"file:///etc/passwd")),
    refused("one slash", 400, get(b"", b"http:/h/")),
    refused("backslash authority", 400, get(b"", b"http://h\\evil/")),
    served("Host differs from absolute-form", get(b"", b"http://other/x"), (b"GET", b"other", b"/x", b"")),
    served("Host in upper case", b"GET / HTTP/1.1\r\nHost: H\r\n\r\n", GOT),
    served("Host empty", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", (b"GET", b"", b"/", b"")),
    served("Host IPv6", b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", (b"GET", b"[::1]:80", b"/", b"")),
    served("Host missing in HTTP/1.0", b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", (b"GET", b"", b"/", b"")),
    served("at sign in a path", get(b"", b"http://h/@evil"), (b"GET", b"h", b"/@evil", b"")),
]

METHODS = [
    refused("CONNECT with length", 400, b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\nContent-Length: 5\r\n\r\nhello"),
    refused("CONNECT chunked", 400, b"CONNECT h:1 HTTP/1.1\r\nHost: h:1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    refused("CONNECT with path", 400, b"CONNECT h:1/x HTTP/1.1\r\nHost: h:1\r\n\r\n"),
    refused("CONNECT to a path", 400, b"CONNECT /x HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("CONNECT to a URL", 400, b"CONNECT http://h:1/ HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("CONNECT without port", 400, b"CONNECT h HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("CONNECT with empty port", 400, b"CONNECT h: HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("CONNECT to port 0", 400, b"CONNECT h:0 HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("CONNECT to a huge port", 400, b"CONNECT h:65536 HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("CONNECT with user", 400, b"CONNECT a@h:1 HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("CONNECT to bare IPv6", 400, b"CONNECT ::1:443 HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("CONNECT to IPv6 without port", 400, b"CONNECT [::1] HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("CONNECT to asterisk", 400, b"CONNECT * HTTP/1.1\r\nHost: h\r\n\r\n"),
    refused("TRACE with body", 400, b"TRACE / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello"),
    refused("TRACE chunked", 400, b"TRACE / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    refused("unknown expectation", 417, post(b"Expect: 200-ok\r\nContent-Length: 1\r\n", b"x")),
    refused("two expectations", 417, post(b"Expect: 100-continue, x\r\nContent-Length: 1\r\n", b"x")),
    served("Expect without body", get(b"Expect: 100-continue\r\n"), GOT),
    served("Connection can't unframe", post(b"Connection: content-length\r\nContent-Length: 5\r\n", b"hello"), got(b"hello")),
    served("Connection can't unframe chunks", post(b"Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n", b"1\r\na\r\n0\r\n\r\n"), got(b"a")),
    served("Connection can't remove Host", get(b"Connection: host\r\n"), GOT),
    served("h2c upgrade is ignored", get(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"), GOT),
    served("h2c upgrade without Connection", get(b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"), GOT),
    served("Upgrade without Connection", get(b"Upgrade: websocket\r\n"), GOT),
    served("Upgrade with body is a request", post(b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n", b"x"), got(b"x")),
]

PIPELINES = [
    served("good, good", get(b"") + post(b"Content-Length: 1\r\n", b"x"), GOT, got(b"x")),
    Case("good, bad", get(b"") + get(b"X : y\r\n") + SMUGGLED, 400, (GOT,)),
    Case("good, TE.CL", get(b"") + post(b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n") + SMUGGLED, 400, (GOT,)),
    Case("good, chunk overrun", get(b"") + post(b"Content-Length: 1\r\n", b"xGARBAGE / HTTP/1.1\r\n\r\n"), 400, (GOT, got(b"x"))),
    Case("body longer than said", post(b"Content-Length: 1\r\n", b"xyz\r\n\r\n"), 400, (got(b"x"),)),
    Case("preface after a request", get(b"") + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, (GOT,)),
    Case("close, then more", get(b"Connection: close\r\n") + SMUGGLED, None, (GOT,)),
    Case("close in a list, then more", get(b"Connection: x, CLOSE\r\n") + SMUGGLED, None, (GOT,)),
    Case("HTTP/1.0, then more", b"GET / HTTP/1.0\r\nHost: h\r\n\r\n" + SMUGGLED, None, (GOT,)),
    Case("HTTP/1.0 keep-alive and close", b"GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive, close\r\n\r\n" + SMUGGLED, None, (GOT,)),
]

# fmt: on
CASES = LENGTHS + CODINGS + CHUNKS + LINES + REQUEST_LINES + AUTHORITIES + METHODS + PIPELINES
CLOSED_AFTER_SERVING = {case.name for case in PIPELINES if case.status is None} - {"good, good"}
