"""Policy files and presets: who extends whom, merged and validated.

A policy is named by its file's stem. Its ``extends`` names a preset or another file; without it
the defaults are extended. A file may have a preset's name and extend that preset.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edged.mistakes import Mistake, of_validation, of_value, of_yaml
from edged.yaml_positions import Document, Mark, parse
from policies.schema import Policy

MAX_BYTES = 1 << 20
"""Of one configuration file."""


class PolicyFile(Policy):
    """A file of policies_dir: `extends` and whatever differs from that."""

    extends: str | None = None
    """A preset or another policy file, without .yaml; null: the defaults."""


@dataclass(slots=True)
class PolicySet:
    """All policies that a configuration can name."""

    policies: dict[str, Policy] = field(default_factory=dict)
    files: dict[str, Document] = field(default_factory=dict)
    """Policy name to the file that it stands in."""
    mistakes: list[Mistake] = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that can be referred to, files with mistakes included."""
        return tuple(sorted({*presets(), *self.files}))


@cache
def presets() -> Mapping[str, Mapping[str, Any]]:
    """The presets by name, as plain data."""
    found = {}
    for item in resources.files("policies.presets").iterdir():
        if item.name.endswith(".yaml"):
            document = parse(Path(item.name), item.read_bytes())
            found[item.name.removesuffix(".yaml")] = _mapping(document.data)
    return dict(sorted(found.items()))


def preset(name: str) -> Policy:
    """A preset as a policy. Raises KeyError."""
    return Policy.model_validate(presets()[name])


def policy_files(directory: Path) -> list[Path]:
    """The policy files in ``directory``, sorted; hidden files and editors' backups are none.

    Raises OSError.
    """
    return sorted(
        file
        for file in directory.iterdir()
        if file.suffix in (".yaml", ".yml") and not file.name.startswith((".", "#"))
    )


def load(directory: Path | None) -> PolicySet:
    """Read ``directory`` (``None``: presets only). Never raises: see ``mistakes``."""
    result = PolicySet()
    files: list[Path] = []
    if directory is not None:
        try:
            files = policy_files(directory)
        except OSError as error:
            text = f"cannot be read: {error.strerror}"
            result.mistakes.append(Mistake(directory, Mark(1, 1), "", text))
    for file in files:
        _read(result, file)
    for name in result.names:
        merged = _merged(result, name, ())
        if merged is not None:
            result.policies[name] = Policy.model_validate(merged)
    return result


def read_document(file: Path, otherwise: str = "") -> tuple[Document, list[Mistake]]:
    """Parse ``file``; what keeps it from being read is a mistake as well, with ``otherwise``
    said of what to do then.
    """
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        text = f"cannot be read: {error.strerror}{otherwise}"
        return Document(file, broken=True), [Mistake(file, Mark(1, 1), "", text)]
    if len(raw) > MAX_BYTES:
        text = f"is larger than {MAX_BYTES} bytes"
        return Document(file, broken=True), [Mistake(file, Mark(1, 1), "", text)]
    document = parse(file, raw)
    mistakes = of_yaml(document)
    if not document.broken and not isinstance(document.data, dict | None):
        mistakes.append(of_value(document, (), "must be a mapping (key: value)"))
        document.data = None
        document.broken = True
    return document, mistakes


def _read(result: PolicySet, file: Path) -> None:
    document, mistakes = read_document(file)
    if file.stem in result.files:
        other = result.files[file.stem].file.name
        mistakes.append(Mistake(file, Mark(1, 1), "", f"policy {file.stem!r} is in {other} too"))
    else:
        result.files[file.stem] = document
    if not document.broken:
        try:
            PolicyFile.model_validate(_mapping(document.data))
        except ValidationError as error:
            mistakes += of_validation(document, PolicyFile, error)
    if mistakes:
        document.broken = True  # its own mistakes are told; nothing that extends it repeats them
    result.mistakes += mistakes


def _merged(result: PolicySet, name: str, below: tuple[str, ...]) -> dict[str, Any] | None:
    """``name`` with all that it extends, or ``None`` if a mistake stands in the way."""
    document = result.files.get(name)
    if document is None:
        return dict(presets()[name])
    if document.broken:
        return None
    own = _mapping(document.data)
    base = own.pop("extends", None)
    if base is None:
        return own
    names = tuple(n for n in result.names if n != name or n in presets())
    if base not in names:
        if not below:
            result.mistakes.append(_unknown(document, base, names))
        return None
    if base in below:
        if below[0] == base:  # told once, in the file whose turn it is
            cycle = " extends ".join((*below, name, base))
            result.mistakes.append(of_value(document, ("extends",), f"a circle: {cycle}"))
        return None
    if base == name:  # a file with a preset's name extends the preset
        return _merge(presets()[base], own)
    parent = _merged(result, base, (*below, name))
    return None if parent is None else _merge(parent, own)


def _unknown(document: Document, base: object, names: tuple[str, ...]) -> Mistake:
    text = f"no policy file and no preset is named {base!r}"
    return of_value(document, ("extends",), text, allowed=names, word=base)


def _merge(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in own.items():
        known = result.get(key)
        if isinstance(known, Mapping) and isinstance(value, Mapping):
            result[key] = _merge(known, value)
        else:
            result[key] = value
    return result


def _mapping(data: object) -> dict[str, Any]:
    return dict(data) if isinstance(data, dict) else {}
