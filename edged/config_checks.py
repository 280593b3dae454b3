"""What spans several values of ``edged.yaml``: names, references, overlaps, access, files.

The checks read the raw document, so that they also run when some value has the wrong type: what
`edged.config_file` already refuses is skipped here.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult

from edged.config_file import host_name, host_pattern, split_address, split_url
from edged.mistakes import Mistake, of_value, show
from edged.yaml_positions import Document, Loc
from policies import geo

T = TypeVar("T")


class Checked:
    """What the checks found out."""

    def __init__(self, document: Document, policies: tuple[str, ...]) -> None:
        self.document = document
        self.policies = policies
        self.mistakes: list[Mistake] = []
        self.allow: list[str] = []
        """Client networks that are valid."""
        self.credentials: list[bytes] | None = None
        """``user:password`` pairs, if a file holds them."""

    def wrong(
        self, loc: Loc, text: str, allowed: tuple[str, ...] = (), word: object = None
    ) -> None:
        """Note a mistake at the value at ``loc``."""
        mistake = of_value(self.document, loc, text, allowed=allowed, word=word)
        self.mistakes.append(mistake)

    def items(self, *loc: str | int) -> Iterator[Loc]:
        """The places of a list's items."""
        value = self.document.get(*loc)
        for index in range(len(value)) if isinstance(value, list) else ():
            yield (*loc, index)

    def text(self, *loc: str | int) -> str | None:
        """The text at ``loc``, if it is one."""
        value = self.document.get(*loc)
        return value if isinstance(value, str) else None

    def file(self, name: str) -> Path:
        """A file named in the document: relative names start beside it."""
        return self.document.file.parent / name


def check(document: Document, policies: tuple[str, ...]) -> Checked:
    """Run every check; ``policies`` are the names that can be referred to."""
    checked = Checked(document, policies)
    for run in (
        *(_lines, _upstreams, _routes, _endpoints, _references, _relays),
        *(_places, _access, _listeners, _files),
    ):
        run(checked)
    return checked


def url_host(url: SplitResult) -> str:
    """The host of a URL that `split_url` accepted."""
    return host_name(url.hostname or "")


def _unique(
    checked: Checked, places: Iterator[Loc], what: str, value: Callable[[Loc], str | None]
) -> None:
    seen: dict[str, Loc] = {}
    for loc in places:
        word = value(loc)
        if word is None:
            continue
        if word in seen:
            line = checked.document.value_mark(seen[word]).line
            checked.wrong(loc, f"{what} {word!r} is taken (line {line})")
        seen.setdefault(word, loc)


def _names(checked: Checked, *loc: str | int) -> Iterator[Loc]:
    return ((*item, "name") for item in checked.items(*loc))


def _lines(checked: Checked) -> None:
    _unique(checked, _names(checked, "lines"), "the name", lambda loc: checked.text(*loc))
    bound: dict[tuple[object, ...], str] = {}
    for loc in checked.items("lines"):
        bind = checked.document.get(*loc, "bind")
        values = bind if isinstance(bind, dict) else {}
        given = [key for key in ("source", "interface", "mark") if values.get(key) is not None]
        if len(given) > 1:
            text = f"binds by {' and '.join(given)}; a line is bound by one of them"
            checked.wrong((*loc, "bind", given[1]), text)
            continue
        key = (given[0], str(values[given[0]])) if given else ()
        name = checked.text(*loc, "name") or f"lines[{loc[-1]}]"
        if key in bound:
            place = (*loc, "bind", *given) if given else loc
            checked.wrong(place, f"leaves by the same way as line {bound[key]!r}")
        bound.setdefault(key, name)


def _upstreams(checked: Checked) -> None:
    _unique(checked, _names(checked, "upstreams"), "the name", lambda loc: checked.text(*loc))
    for loc in checked.items("upstreams"):
        entry = checked.document.get(*loc)
        if isinstance(entry, dict) and not entry.get("hosts") and entry.get("prefix") is None:
            checked.wrong(loc, "has neither hosts nor a prefix: no request could find it")


def _routes(checked: Checked) -> None:
    """Each host and each prefix belongs to one upstream."""

    def host(loc: Loc) -> str | None:
        return _try(host_pattern, checked.text(*loc))

    def prefix(loc: Loc) -> str | None:
        text = checked.text(*loc)
        return None if text is None else text.rstrip("/") or "/"

    upstreams = list(checked.items("upstreams"))
    hosts = (item for loc in upstreams for item in checked.items(*loc, "hosts"))
    _unique(checked, hosts, "the host", host)
    _unique(checked, ((*loc, "prefix") for loc in upstreams), "the prefix", prefix)


def _endpoints(checked: Checked) -> None:
    own = {_try(split_address, text) for text in _listen_texts(checked)}
    for upstream in checked.items("upstreams"):
        _unique(
            checked,
            (_endpoint_name_place(checked, loc) for loc in checked.items(*upstream, "endpoints")),
            "the endpoint name",
            lambda loc: _endpoint_name(checked, loc),
        )
        for loc in checked.items(*upstream, "endpoints"):
            url = _try(split_url, checked.text(*loc, "url"))
            if url is None:
                continue
            if (url.hostname, url.port or 80) in own:
                checked.wrong((*loc, "url"), "is edged's own listener: requests would go round")
            _reachable(checked, loc, url)
            protocols = checked.document.get(*loc, "protocols")
            if not isinstance(protocols, list):
                continue
            if not protocols:
                checked.wrong((*loc, "protocols"), "must not be empty")
            if url.scheme == "http" and "h3" in protocols:
                place = (*loc, "protocols", protocols.index("h3"))
                checked.wrong(place, "'h3' needs https", ("h2", "h1"))


def _reachable(checked: Checked, loc: Loc, url: SplitResult) -> None:
    """A literal address must be of a family that some line of the endpoint has."""
    key = "url" if checked.document.get(*loc, "address") is None else "address"
    text = url.hostname if key == "url" else checked.text(*loc, "address")
    address = _try(ipaddress.ip_address, text)
    own = checked.document.get(*loc, "lines")
    sources = []
    for line in checked.items("lines"):
        if isinstance(own, list) and checked.text(*line, "name") not in own:
            continue
        source = _try(ipaddress.ip_address, checked.text(*line, "bind", "source"))
        if source is None:
            return  # it carries both
        sources.append(source)
    if address is not None and sources and all(s.version != address.version for s in sources):
        said = ", ".join(map(str, sources))
        checked.wrong(
            (*loc, key), f"{address} cannot be reached from {said}: no line is IPv{address.version}"
        )


def _endpoint_name_place(checked: Checked, loc: Loc) -> Loc:
    return (*loc, "name" if checked.text(*loc, "name") is not None else "url")


def _endpoint_name(checked: Checked, loc: Loc) -> str | None:
    if loc[-1] == "name":
        return checked.text(*loc)
    url = _try(split_url, checked.text(*loc))
    return None if url is None else url_host(url)


def _references(checked: Checked) -> None:
    names = (checked.text(*loc, "name") for loc in checked.items("lines"))
    lines = tuple(dict.fromkeys(name for name in names if name is not None))
    if checked.document.get("lines") is None:
        lines = ("default",)
    names = (checked.text(*loc, "name") for loc in checked.items("relays"))
    relays = tuple(dict.fromkeys(name for name in names if name is not None))
    for relay in checked.items("relays"):
        _named(checked, (*relay, "lines"), "line", lines, "the relay could not be reached")
    for upstream in checked.items("upstreams"):
        _policy(checked, (*upstream, "policy"))
        for endpoint in checked.items(*upstream, "endpoints"):
            _named(
                checked, (*endpoint, "lines"), "line", lines, "the endpoint could not be reached"
            )
            _named(checked, (*endpoint, "relays"), "relay", relays)
            through = checked.document.get(*endpoint, "relays")
            if checked.document.get(*endpoint, "direct") is False and (not relays or through == []):
                text = "and no relay leads there: the endpoint could not be reached"
                checked.wrong((*endpoint, "direct"), text)
    _policy(checked, ("unlisted_policy",))


def _named(
    checked: Checked, place: Loc, what: str, known: tuple[str, ...], without: str | None = None
) -> None:
    """A list of names of what exists; ``without``: what an empty one would mean."""
    if without is not None and checked.document.get(*place) == []:
        checked.wrong(place, f"names no {what}: {without}", known)
    for item in checked.items(*place):
        word = checked.text(*item)
        if word is not None and word not in known:
            checked.wrong(item, f"no {what} is named {word!r}", known, word)


def _policy(checked: Checked, loc: Loc) -> None:
    word = checked.text(*loc)
    if word is not None and word not in checked.policies:
        text = f"no policy file and no preset is named {word!r}"
        checked.wrong(loc, text, checked.policies, word)


def _relays(checked: Checked) -> None:
    _unique(checked, _names(checked, "relays"), "the name", lambda loc: checked.text(*loc))


def _places(checked: Checked) -> None:
    places: list[Loc] = [("node", "location")]
    places += [(*loc, "location") for loc in checked.items("relays")]
    for upstream in checked.items("upstreams"):
        places += [(*loc, "location") for loc in checked.items(*upstream, "endpoints")]
    for loc in places:
        word = checked.text(*loc)
        if word is None:
            continue
        try:
            geo.locate(word)
        except geo.UnknownRegion:
            text = f"no region is named {word!r}; a location is that or [latitude, longitude]"
            checked.wrong(loc, text, tuple(geo.regions()), word)


def _listen_texts(checked: Checked) -> Iterator[str]:
    yield from (text for loc in _proxy_places(checked) if (text := checked.text(*loc)) is not None)


def _proxy_places(checked: Checked) -> list[Loc]:
    place = ("listen", "proxy")
    return [place] if checked.text(*place) is not None else list(checked.items(*place))


def _listeners(checked: Checked) -> None:
    """No address twice; none open to strangers without saying who may use it."""
    seen: dict[tuple[str, int], Loc] = {}
    for loc in (*_proxy_places(checked), ("listen", "admin")):
        address = _try(split_address, checked.text(*loc))
        if address is None:
            continue
        if address[1] and address in seen:
            line = checked.document.value_mark(seen[address]).line
            checked.wrong(loc, f"is listened on already (line {line})")
        seen.setdefault(address, loc)
        if ipaddress.ip_address(address[0]).is_loopback:
            continue
        if loc[-1] == "admin" and not checked.allow:
            text = f"{address[0]} is not a loopback address: give access.allow a list of networks"
            checked.wrong(loc, text)
        elif loc[-1] != "admin" and not checked.allow and checked.credentials is None:
            text = (
                f"{address[0]} is not a loopback address: say who may use it with access.allow "
                "or access.credentials_file"
            )
            checked.wrong(loc, text)


def _access(checked: Checked) -> None:
    for loc in checked.items("access", "allow"):
        network = _try(ipaddress.ip_network, checked.text(*loc))
        if network is not None:
            checked.allow.append(str(network))
    place = ("access", "credentials_file")
    name = checked.text(*place)
    if name is None:
        return
    raw = _secret(checked, place, name)
    checked.credentials = []
    for number, line in enumerate(raw.splitlines() if raw else (), 1):
        if not line.strip() or line.startswith(b"#"):
            continue
        user, colon, password = line.strip().partition(b":")
        if user and colon and password:
            checked.credentials.append(line.strip())
        else:
            checked.wrong(place, f"line {number} of the file is not user:password (not shown)")
    if raw is not None and not checked.credentials:
        checked.wrong(place, "the file holds no user:password")


def _files(checked: Checked) -> None:
    for loc in checked.items("relays"):
        place = (*loc, "token_file")
        name = checked.text(*place)
        raw = None if name is None else _secret(checked, place, name)
        if raw is not None and len(raw.split()) != 1:
            checked.wrong(place, "the file must hold one token and nothing else")
    ca_file = checked.text("tls", "ca_file")
    if ca_file == "":
        checked.wrong(("tls", "ca_file"), "'' names no file; null means none")
    elif ca_file is not None:
        _certificates(checked, ("tls", "ca_file"), checked.file(ca_file))
    spool = checked.text("limits", "spool_dir")
    if spool == "":
        checked.wrong(("limits", "spool_dir"), "'' names no directory; null means the default")
    elif spool is not None:
        _writable(checked, ("limits", "spool_dir"), checked.file(spool))
    log = checked.text("log", "access")
    if log is not None and log not in ("stdout", "stderr"):
        directory = checked.file(log).parent
        if os.path.isdir(checked.file(log)) or not os.path.isdir(directory):
            text = f"{show(log)} cannot be a log file: {directory} is no directory"
            if os.path.isdir(directory):
                text = f"{show(log)} is a directory"
            checked.wrong(("log", "access"), text, ("stdout", "stderr", "a file"), log)


def _secret(checked: Checked, place: Loc, name: str) -> bytes | None:
    """A secret's file. Its name is not shown: it may be the secret, put there by mistake."""
    try:
        with checked.file(name).open("rb") as stream:
            return stream.read(1 << 20)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        checked.wrong(place, f"the file cannot be read: {reason}")
        return None


def _certificates(checked: Checked, place: Loc, file: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=file)
    except ssl.SSLError:
        checked.wrong(place, f"{show(str(file))} holds no certificate in PEM form")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        checked.wrong(place, f"{show(str(file))} cannot be read: {reason}")


def _writable(checked: Checked, place: Loc, directory: Path) -> None:
    if not os.path.isdir(directory):
        checked.wrong(place, f"{show(str(directory))} is no directory")
        return
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        text = f"{show(str(directory))} is not writable: {os.strerror(error.errno or 0)}"
        checked.wrong(place, text)


def _try(function: Callable[[str], T], text: str | None) -> T | None:
    """``function(text)``, or ``None`` for what is refused elsewhere."""
    if text is None:
        return None
    try:
        return function(text)
    except ValueError:
        return None
