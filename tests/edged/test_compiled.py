"""A build is used only for the very sources it was made of; what a build does is tested elsewhere:
`make test` runs the tests of the hot modules against it."""

import _heapq
import enum
import importlib
import json
import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from edged import compiled
from edged.commands import compile as command

ROOT = Path(__file__).resolve().parent.parent.parent
SUFFIX = EXTENSION_SUFFIXES[0]


@pytest.fixture
def copy(tmp_path):
    """The sources elsewhere, with a build that holds one library and stands for no module."""
    for package in compiled.PACKAGES:
        ignored = shutil.ignore_patterns("_compiled*", "__pycache__")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    build = tmp_path / "edged" / "_compiled"
    build.mkdir()
    shutil.copy(_heapq.__file__, build / f"_heapq{SUFFIX}")
    manifest = {
        "fingerprint": compiled.fingerprint(tmp_path),
        "library": "_heapq",
        "modules": [],
    }
    (build / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def edged(directory, *arguments, **environment):
    """Run edged on the sources of ``directory``: output and exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "edged", *arguments],
        cwd=directory,
        env={**os.environ, "EDGED_COMPILED": "", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr, done.returncode


def test_a_build_of_these_sources_is_used(copy):
    said, status = edged(copy, "version")
    assert ", compiled)" in said
    assert status == 0


def test_a_changed_byte_anywhere_makes_it_stale(copy):
    with (copy / "policies" / "rtt.py").open("a") as file:
        file.write("#")
    said, status = edged(copy, "version")
    assert "not compiled: the build is of other sources" in said
    assert status == 0


def test_a_new_file_makes_it_stale(copy):
    (copy / "edged" / "upstream" / "h4.py").write_text("")
    assert "not compiled: the build is of other sources" in edged(copy, "version")[0]


def test_another_interpreter_is_another_build(copy, monkeypatch):
    before = compiled.fingerprint(copy)
    monkeypatch.setattr(compiled, "EXTENSION_SUFFIXES", [".cpython-399.so"])
    assert compiled.fingerprint(copy) != before


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fingerprint": 1}'])
def test_a_spoilt_manifest_is_told(copy, text):
    (copy / "edged" / "_compiled" / "manifest.json").write_text(text)
    assert "manifest.json cannot be read" in edged(copy, "version")[0]


def test_a_library_that_cannot_be_loaded_is_told_and_left_alone(copy):
    (copy / "edged" / "_compiled" / f"_heapq{SUFFIX}").write_bytes(b"no library")
    said, status = edged(copy, "version")
    assert "not compiled: the build cannot be loaded" in said
    assert status == 0


def test_the_variable_says_no(copy):
    assert "not compiled: EDGED_COMPILED=0" in edged(copy, "version", EDGED_COMPILED="0")[0]


def test_the_variable_insists(copy):
    assert edged(copy, "version", EDGED_COMPILED="1")[1] == 0
    shutil.rmtree(copy / "edged" / "_compiled")
    said, status = edged(copy, "version", EDGED_COMPILED="1")
    assert "EDGED_COMPILED=1, but edged is not compiled; run: edged compile" in said
    assert status == 1


def test_modules_imported_before_are_not_mixed_with_compiled_ones(copy):
    manifest = copy / "edged" / "_compiled" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("[]", '["policies.budget"]'))
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import policies.budget, edged.compiled as c; c.activate(); print(c.state())",
        ],
        cwd=copy,
        env={**os.environ, "EDGED_COMPILED": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "not compiled: policies.budget was imported before\n"


def test_compiling_again_is_quick(copy):
    assert edged(copy, "compile") == ("edged: compiled already, and these sources\n", 0)


def test_without_a_compiler_it_says_so(copy):
    shutil.rmtree(copy / "edged" / "_compiled")
    said, status = edged(copy, "compile", CC="/no/such/cc")
    assert said.startswith("edged: not compiled: there is no C compiler (/no/such/cc")
    assert said.count("\n") == 1
    assert status == 1
    assert edged(copy, "compile", "--if-possible", CC="/no/such/cc")[1] == 0


def names():
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in compiled.sources()
        if not file.name.startswith("__")
    }


def test_what_is_compiled_exists():
    assert set(command.MODULES) <= names()
    assert len(set(command.MODULES)) == len(command.MODULES)


def test_compiled_classes_have_no_heirs_elsewhere():
    """Instances of such an heir could not be made: compile its module too, or do without it."""
    heirs = [
        f"{name}.{heir.__name__} inherits from {ancestor.__module__}.{ancestor.__name__}"
        for name in names() - set(command.MODULES)
        for heir in vars(importlib.import_module(name)).values()
        if isinstance(heir, type) and heir.__module__ == name
        for ancestor in heir.__mro__
        if ancestor.__module__ in command.MODULES
        and not getattr(ancestor, "_is_protocol", False)
        and not issubclass(ancestor, tuple | enum.Enum | BaseException)
    ]
    assert heirs == []


def test_compiled_classes_inherit_from_compiled_ones():
    """mypyc frees instances without clearing weak references to them: whoever holds one, as
    `threading` does of threads, then holds freed memory. Transports hold none of protocols.
    """
    harmless = {"builtins", "abc", "typing", "enum", "asyncio.protocols", *command.MODULES}
    foreign = [
        f"{name}.{heir.__name__} inherits from {ancestor.__module__}.{ancestor.__name__}"
        for name in command.MODULES
        for heir in vars(importlib.import_module(name)).values()
        if isinstance(heir, type) and heir.__module__ == name
        for ancestor in heir.__mro__
        if ancestor.__module__ not in harmless and not getattr(ancestor, "_is_protocol", False)
    ]
    assert foreign == []
