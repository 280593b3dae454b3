"""Runs the compiled form of the hot modules, where ``edged compile`` made one of these sources.

The sources are the truth: a build carries their fingerprint, and is left alone as soon as one byte
of them differs, or for another interpreter. Then, and where there is no build, the same sources run
as Python. What is compiled, and how: `edged.commands.compile`.

``EDGED_COMPILED=0`` runs Python in any case; ``EDGED_COMPILED=1`` refuses to.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from edged.failure import Failed

PACKAGES = ("edged", "policies", "probes")
ROOT = Path(__file__).resolve().parent.parent
"""The directory of the three packages."""
BUILD = ROOT / "edged" / "_compiled"
MANIFEST = "manifest.json"
_VARIABLE = "EDGED_COMPILED"

_state = "not compiled"


class _Finder(MetaPathFinder):
    """Finds the modules of a build before their sources."""

    def __init__(self, directory: Path, modules: Sequence[str]) -> None:
        self._directory = directory
        self._modules = frozenset(modules)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `MetaPathFinder`."""
        if fullname not in self._modules:
            return None
        file = str(self._directory / (fullname + EXTENSION_SUFFIXES[0]))
        return spec_from_file_location(fullname, file, loader=ExtensionFileLoader(fullname, file))


def sources(root: Path = ROOT) -> Iterator[Path]:
    """Every source file of the three packages, in order."""
    for package in PACKAGES:
        yield from sorted((root / package).rglob("*.py"))


def fingerprint(root: Path = ROOT) -> str:
    """Of the sources and of the interpreter that a build is for."""
    digest = hashlib.sha256(EXTENSION_SUFFIXES[0].encode())
    for file in sources(root):
        content = file.read_bytes()
        digest.update(f"\n{file.relative_to(root)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def activate() -> None:
    """Import the compiled modules from here on, if there is a build of these very sources.

    To be called before any of them is imported. Raises `Failed` where ``EDGED_COMPILED=1`` asks for
    what is not there.
    """
    global _state
    wanted = os.environ.get(_VARIABLE, "")
    if wanted == "0":
        _state = f"not compiled: {_VARIABLE}=0"
        return
    problem = _use(BUILD)
    _state = "compiled" if problem is None else f"not compiled{problem and ': '}{problem}"
    if wanted == "1" and problem is not None:
        raise Failed(f"{_VARIABLE}=1, but edged is {_state}; run: edged compile")


def _use(build: Path) -> str | None:
    """``None``, or why ``build`` is not used (empty: there is none)."""
    try:
        manifest = json.loads((build / MANIFEST).read_bytes())
        modules, library = manifest["modules"], manifest["library"]
        current = manifest["fingerprint"]
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{build / MANIFEST} cannot be read ({type(error).__name__})"
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return None
    if current != fingerprint():
        return "the build is of other sources or another Python; run: edged compile"
    if early := [name for name in modules if name in sys.modules]:
        return f"{early[0]} was imported before"
    finder = _Finder(build, [library, *modules])
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module(library)
    except ImportError as error:
        sys.meta_path.remove(finder)
        return f"the build cannot be loaded: {error}"
    return None


def state() -> str:
    """``compiled``, or ``not compiled`` and why."""
    return _state
