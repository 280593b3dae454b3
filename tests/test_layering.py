"""Imports point one way: edged -> probes -> policies; policies is pure."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("policies", "probes", "edged")
ALLOWED = {"policies": {"policies"}, "probes": {"probes", "policies"}, "edged": set(ROOMS)}
POLICIES_LIBRARIES = {"pydantic", "geopy", "yaml"}
IMPURE = {"asyncio", "socket", "time", "threading", "subprocess", "select", "selectors", "ssl"}


def imported(source):
    """Top-level names of every module imported anywhere in `source`, with the line number."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.split(".")[0], node.lineno


def wrong(room, source):
    """The imports of a file in `room` that point the wrong way, as `line: name`."""
    found = []
    for name, line in imported(source):
        bad = name in ROOMS and name not in ALLOWED[room]
        if room == "policies" and name not in ALLOWED[room] | POLICIES_LIBRARIES:
            bad = bad or name not in sys.stdlib_module_names or name in IMPURE
        if bad or name == "tests":
            found.append(f"{line}: {name}")
    return found


def uses_global_randomness(source):
    """Calls of functions of the module `random`; a `random.Random` passed in is fine."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "random"
    ]


FILES = [(room, path) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


@pytest.mark.parametrize(
    ("room", "path"), FILES, ids=[str(path.relative_to(ROOT)) for _, path in FILES]
)
def test_imports_point_one_way(room, path):
    source = path.read_text(encoding="utf-8")
    assert wrong(room, source) == []
    if room == "policies":
        assert uses_global_randomness(source) == []


def test_every_room_is_looked_at():
    assert {room for room, _ in FILES} == set(ROOMS)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("policies", "import probes.base"),
        ("policies", "def f():\n    from edged import table"),
        ("policies", "import time"),
        ("policies", "import httpx"),
        ("probes", "from edged.dialer import LineDialer"),
        ("edged", "import tests.harness"),
    ],
)
def test_an_arrow_the_wrong_way_is_seen(room, source):
    assert wrong(room, source)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("policies", "import math, yaml\nfrom policies.model import Path"),
        ("probes", "import asyncio, httpx\nfrom policies.model import Path"),
        ("edged", "from probes.base import Probe\nfrom . import messages"),
    ],
)
def test_an_arrow_the_right_way_is_not(room, source):
    assert not wrong(room, source)
