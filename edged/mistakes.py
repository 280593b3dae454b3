"""Mistakes in configuration files, told so that they can be corrected without the manual.

Each names file, line and column, the value, what is allowed and the nearest valid word. Values
that may be secret (anything below a key such as token or password) are never shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from edged.yaml_positions import Document, Loc, Mark

SHOWN = 16
"""Allowed words listed before the rest is only counted."""

_SECRET = re.compile(r"token|secret|passw|credential|api_?key", re.IGNORECASE)
_USERINFO = re.compile(r"//[^/@\s]*@")


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake; ``str()`` is the line for people."""

    file: Path
    mark: Mark
    where: str
    """The key, as ``upstreams[0].prefix``; empty when the file as a whole is meant."""
    text: str
    allowed: tuple[str, ...] = ()
    nearest: str | None = None

    def __str__(self) -> str:
        parts = [f"{self.file}:{self.mark.line}:{self.mark.column}: "]
        if self.where:
            parts.append(f"{self.where}: ")
        parts.append(self.text)
        if self.allowed:
            parts.append(f"; allowed: {', '.join(self.allowed[:SHOWN])}")
            if len(self.allowed) > SHOWN:
                parts.append(f" ... ({len(self.allowed)} in all)")
        if self.nearest is not None:
            parts.append(f"; did you mean {self.nearest!r}?")
        return "".join(parts)


class ConfigError(Exception):
    """A configuration with mistakes; all of them, in the order of the files."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(sorted(mistakes, key=lambda m: (str(m.file), m.mark, m.where)))
        super().__init__("\n".join(str(m) for m in self.mistakes))


def nearest(word: object, allowed: Collection[str]) -> str | None:
    """The allowed word that ``word`` is probably meant to be, or ``None``."""
    if not isinstance(word, str) or len(word) > 200:
        return None
    folded = {a.casefold(): a for a in allowed}
    match = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=0.5)
    return folded[match[0]] if match else None


def dotted(loc: Loc) -> str:
    """``("upstreams", 0, "prefix")`` as ``upstreams[0].prefix``."""
    text = ""
    for step in loc:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def show(value: object, loc: Loc = ()) -> str:
    """``value`` for a message: short, and nothing that may be secret."""
    if any(isinstance(step, str) and _SECRET.search(step) for step in loc):
        return "the value (not shown)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if len(value) > 3 or _nested(value) else repr(list(value))
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(_USERINFO.sub("//...@", value)) if isinstance(value, str) else repr(value)
    # The end of a long value tells more than its middle: a path's file name, a URL's path.
    return text if len(text) <= 80 else f"{text[:38]}...{text[-38:]}"


def _nested(value: Collection[object]) -> bool:
    return any(isinstance(v, dict | list) for v in value)


def of_yaml(document: Document) -> list[Mistake]:
    """The mistakes in the YAML itself."""
    return [Mistake(document.file, mark, "", text) for mark, text in document.problems]


def of_value(
    document: Document,
    loc: Loc,
    text: str,
    *,
    allowed: Iterable[str] = (),
    word: object = None,
    key: bool = False,
) -> Mistake:
    """A mistake at the value (or the key) at ``loc``; ``word`` is looked up in ``allowed``."""
    words = tuple(allowed)
    mark = document.key_mark(loc) if key else document.value_mark(loc)
    return Mistake(document.file, mark, dotted(loc), text, words, nearest(word, words))


def of_validation(
    document: Document, model: type[BaseModel], error: ValidationError
) -> list[Mistake]:
    """The mistakes that pydantic found."""
    return [
        _of_detail(document, model, detail)
        for detail in error.errors(include_url=False)
        # A list with a wrong item counts as too short as well; the item's mistake says it all.
        if not (detail["type"] == "too_short" and detail["input"])
    ]


def _of_detail(document: Document, model: type[BaseModel], detail: ErrorDetails) -> Mistake:
    loc: Loc = detail["loc"]
    kind, value = detail["type"], detail["input"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    if kind == "extra_forbidden":
        section = section_at(model, loc[:-1])
        allowed = tuple(section.model_fields) if section else ()
        return of_value(document, loc, "unknown key", allowed=allowed, word=loc[-1], key=True)
    if kind == "missing":
        section = section_at(model, loc[:-1])
        info = section.model_fields.get(str(loc[-1])) if section else None
        about = f" ({' '.join(info.description.split())})" if info and info.description else ""
        place = document.value_mark(loc[:-1])
        return Mistake(document.file, place, dotted(loc), f"is missing{about}")
    if kind in ("literal_error", "enum"):
        allowed = tuple(re.findall(r"'([^']*)'", str(context.get("expected", ""))))
        text = f"{show(value, loc)} is not valid"
        return of_value(document, loc, text, allowed=allowed, word=value)
    return of_value(document, loc, f"{show(value, loc)}: {_explain(kind, context, detail['msg'])}")


_EXPLAIN = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "int_type": "must be a whole number",
    "list_type": "must be a list",
    "model_type": "must be a mapping",
    "string_pattern_mismatch": "must match {pattern}",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
}


def _explain(kind: str, context: Mapping[str, Any], message: str) -> str:
    if kind == "value_error":
        return str(context["error"])
    if kind in _EXPLAIN:
        return _EXPLAIN[kind].format_map(context)
    for name, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
        if name in context:
            return f"must be {sign} {context[name]:g}"
    return message


def section_at(model: type[BaseModel], loc: Loc) -> type[BaseModel] | None:
    """The model of the mapping at ``loc``, for the keys that it allows."""
    current: type[BaseModel] | None = model
    for step in loc:
        if isinstance(step, int):
            continue
        info = current.model_fields.get(step) if current else None
        current = _model_in(info.annotation) if info else None
    return current


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in get_args(annotation):
        if (found := _model_in(inner)) is not None:
            return found
    return None
