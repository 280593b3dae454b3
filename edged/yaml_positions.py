"""YAML to plain data with the position of every key and value, and every mistake it can find.

Values follow the core schema of YAML 1.2 (``off``, ``yes`` and ``1:30`` are words, not a boolean
and not a number), so that ``when: off`` means what it says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml

Loc = tuple[str | int, ...]
"""Where in the data: keys and indices from the root."""

MAX_NODES = 200_000
"""Nodes after aliases are expanded; more is an attack or an accident."""


class Mark(NamedTuple):
    """A position in a file, counted from 1."""

    line: int
    column: int


class Problem(NamedTuple):
    """A mistake in the YAML itself."""

    mark: Mark
    text: str


@dataclass(slots=True)
class Document:
    """What one file says. ``data`` is ``None`` when it is empty or cannot be parsed at all."""

    file: Path
    data: object = None
    keys: dict[Loc, Mark] = field(default_factory=dict)
    """Where the key of a mapping entry stands."""
    values: dict[Loc, Mark] = field(default_factory=dict)
    """Where a value starts."""
    problems: list[Problem] = field(default_factory=list)
    broken: bool = False
    """It did not parse; ``data`` says nothing."""

    def value_mark(self, loc: Loc) -> Mark:
        """Position of the value at ``loc``, or of its nearest ancestor that stands in the file."""
        while loc and loc not in self.values:
            loc = loc[:-1]
        return self.values.get(loc, Mark(1, 1))

    def key_mark(self, loc: Loc) -> Mark:
        """Position of the key at ``loc``, or of the nearest thing around it."""
        return self.keys.get(loc) or self.value_mark(loc)

    def get(self, *loc: str | int) -> object:
        """The value at ``loc``, or ``None``."""
        value = self.data
        for step in loc:
            if isinstance(value, dict):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            else:
                return None
        return value


def parse(file: Path, raw: bytes) -> Document:
    """Parse ``raw``. Never raises for what the file contains: see `Document.problems`."""
    document = Document(file)
    text = _decode(document, raw)
    if text is None:
        return document
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        mark = _mark_of_offset(text, error.position)
        _break(document, mark, f"the character {_name(error.character)} is not allowed in YAML")
        return document
    except yaml.MarkedYAMLError as error:
        _break(document, _syntax_mark(error), _syntax_text(error, text))
        return document
    except RecursionError:
        _break(document, Mark(1, 1), "nested too deeply")
        return document
    if root is not None:
        _Builder(document).build_root(root)
    return document


class _TooLarge(Exception):
    """More than `MAX_NODES` nodes."""


class _Builder:
    """Turns composed nodes into data; collects duplicate keys and tags nobody knows."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.count = 0
        self.open: set[int] = set()  # ids of the nodes being built: an alias to one is a cycle

    def build_root(self, root: yaml.Node) -> None:
        try:
            self.document.data = self.build(root, ())
        except _TooLarge:
            _break(self.document, Mark(1, 1), f"expands to more than {MAX_NODES} values")
        except RecursionError:
            _break(self.document, Mark(1, 1), "nested too deeply")

    def build(self, node: yaml.Node, loc: Loc) -> object:
        self.count += 1
        if self.count > MAX_NODES:
            raise _TooLarge
        mark = _mark(node)
        self.document.values[loc] = mark
        if id(node) in self.open:
            self._problem(mark, "an alias that contains itself")
            return None
        if self._tagged(node):
            self._problem(mark, f"tags are not supported: {node.tag}")
            if isinstance(node, yaml.ScalarNode):
                return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.SequenceNode):
                return [self.build(child, (*loc, i)) for i, child in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, loc)
        finally:
            self.open.discard(id(node))
        raise AssertionError(f"unknown node {node!r}")

    def _mapping(self, node: yaml.MappingNode, loc: Loc) -> dict[str, object]:
        result: dict[str, object] = {}
        for key_node, value_node in node.value:
            mark = _mark(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(mark, "a key must be a word")
                continue
            if self._tagged(key_node) and mark != _mark(node):
                self._problem(mark, f"tags are not supported: {key_node.tag}")
            key = key_node.value
            if key == "<<" and key_node.style is None:
                self._problem(mark, "merge keys (<<) are not supported; policies have `extends`")
                continue
            place = (*loc, key)
            if key in result:
                first = self.document.keys[place]
                self._problem(mark, f"duplicate key {key!r}; it stands in line {first.line} too")
                continue
            self.document.keys[place] = mark
            result[key] = self.build(value_node, place)
        return result

    def _scalar(self, node: yaml.ScalarNode) -> object:
        if node.style is not None:
            return node.value
        return resolve_plain(node.value)

    @staticmethod
    def _tagged(node: yaml.Node) -> bool:
        """Whether the file itself gives the type: ``!foo``, perhaps behind an anchor."""
        start, text = node.start_mark, node.start_mark.buffer
        written = start.index < node.end_mark.index  # else the next token stands there
        return text is not None and written and bool(_TAG.match(text, start.pointer))

    def _problem(self, mark: Mark, text: str) -> None:
        self.document.problems.append(Problem(mark, text))


_TAG = re.compile(r"(&\S+\s+)?!")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_WORDS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    ".inf": float("inf"),
    "-.inf": float("-inf"),
    ".nan": float("nan"),
}


def resolve_plain(text: str) -> object:
    """The value of an unquoted scalar under the core schema (YAML 1.2, section 10.3.2)."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > 300:
        return text
    if _INT.fullmatch(text):
        return int(text)
    if text.startswith("0x") and re.fullmatch(r"0x[0-9a-fA-F]+", text):
        return int(text, 16)
    if text.startswith("0o") and re.fullmatch(r"0o[0-7]+", text):
        return int(text, 8)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _mark(node: yaml.Node) -> Mark:
    return Mark(node.start_mark.line + 1, node.start_mark.column + 1)


def _break(document: Document, mark: Mark, text: str) -> None:
    document.broken = True
    document.data = None
    document.problems.append(Problem(mark, text))


def _decode(document: Document, raw: bytes) -> str | None:
    """UTF-8 with or without a byte order mark."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        _break(document, Mark(1, 1), "the file is UTF-16; save it as UTF-8")
        return None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # ``start`` counts from behind the byte order mark where there is one.
        before = error.object[: error.start].decode("utf-8", "replace")
        text = f"the byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"
        _break(document, _mark_of_offset(before, len(before)), text)
        return None


def _mark_of_offset(text: str, offset: int) -> Mark:
    before = text[:offset]
    return Mark(before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1)


def _name(character: object) -> str:
    code = ord(character) if isinstance(character, str) else character
    return f"#x{code:04x}" if isinstance(code, int) else repr(code)


def _syntax_mark(error: yaml.MarkedYAMLError) -> Mark:
    mark = error.problem_mark or error.context_mark
    return Mark(mark.line + 1, mark.column + 1) if mark else Mark(1, 1)


def _syntax_text(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark
    if mark is not None:
        lines = text.split("\n")
        line = lines[mark.line] if mark.line < len(lines) else ""
        if "\t" in line[: mark.column + 1]:
            return "a tab; YAML indents with spaces only"
    problem, context = error.problem or "not YAML", error.context or ""
    if context.startswith("expected a single document"):
        return "a second document: a file holds one"
    for theirs, plain in _PLAIN:
        problem, context = problem.replace(theirs, plain), context.replace(theirs, plain)
    if context:
        where = error.context_mark
        start = f" (which starts in line {where.line + 1})" if where else ""
        return f"{problem}, {context}{start}"
    return problem


_PLAIN = (
    ("'<stream end>'", "the end of the file"),
    ("unexpected end of stream", "the end of the file"),
    ("'<scalar>'", "a word"),
    ("'<block mapping start>'", "a mapping"),
    ("the node content", "a value"),
    ("flow node", "list or mapping in brackets"),
    ("flow sequence", "list in brackets"),
    ("flow mapping", "mapping in braces"),
)
