"""``edged compile``: the modules on a request's way, translated to C by mypyc and compiled.

The sources stay as they are and stay the truth (`edged.compiled`). It needs mypy, a C compiler and
Python's headers; whoever lacks them runs the sources, more slowly.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec
from pathlib import Path

from edged.compiled import BUILD, MANIFEST, ROOT, fingerprint, sources
from edged.failure import Failed

_LIBRARY = "edged_compiled__mypyc"
"""mypyc puts the code of all modules in one library; each module is a door to it."""

_HOT = {
    "edged": "accesslog attempt chunked compress counters delivery driver exchange exchanges "
    "headers messages outcome preferences recent routes spool stages targets tunnel",
    "edged.downstream": "base fields h1 h1_response h2 h2_fields h2_floods h2_output h2_stream h3 "
    "h3_stream hub limits output raw stream",
    "edged.relay": "exchanges",
    "edged.upstream": "base connection h1 h1_head h1_reader h2 h2_stream h2_wire h3 h3_connection "
    "h3_frames h3_held h3_meter h3_stream origin_pool pool pool_types quic shelf trust upkeep "
    "waiting",
    "policies": "attempts budget commands sketch",
}
"""What a plain request passes, and whoever inherits from a class of these: compiled classes take
no other heirs."""

MODULES = tuple(f"{package}.{name}" for package, names in _HOT.items() for name in names.split())

_SETUP = """
from setuptools import setup
from mypyc.build import mypycify

flags = ["--config-file=", "--no-site-packages", "--ignore-missing-imports"]
flags += ["--follow-imports=silent", "--no-color-output"]
setup(
    name="edged_compiled",
    packages=[],
    ext_modules=mypycify(
        flags + {files!r}, opt_level="1", debug_level="0", group_name="edged_compiled"
    ),
    script_args=["-q", "build_ext", "--inplace"],
)
"""
# -O1: with -O3 compiling takes twice as long, and the code is not measurably faster. Without other
# packages' types the result is the same whatever versions of them are installed.

_TRY = """
import importlib, sys
from edged import compiled
compiled.BUILD = compiled.Path(sys.argv[1])
compiled.activate()
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


def compile_modules(*, if_possible: bool) -> int:
    """Compile, try the result, put it in place.

    ``if_possible``: where something that it needs is missing, say so and be content.
    """
    current = fingerprint()
    if _is_fresh(current):
        print("edged: compiled already, and these sources")
        return 0
    missing = _missing()
    if missing is not None:
        if not if_possible:
            raise Failed(f"not compiled: {missing}; edged runs without it, more slowly")
        print(f"edged: not compiled: {missing}", file=sys.stderr)
        return 0
    print("edged: compiling; it takes about a minute", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edged-compile-") as name:
        workshop = Path(name)
        for file in sources():
            copy = workshop / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
        if fingerprint(workshop) != current:
            raise Failed("not compiled: the sources changed meanwhile; run it again")
        _translate(workshop)
        _install(_collect(workshop, current))
    print(f"edged: compiled in {time.monotonic() - started:.0f} s; used from the next start on")
    return 0


def _is_fresh(current: str) -> bool:
    try:
        manifest = json.loads((BUILD / MANIFEST).read_bytes())
        return bool(manifest["fingerprint"] == current)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _missing() -> str | None:
    """What compiling needs and this machine lacks."""
    if find_spec("mypyc") is None or find_spec("setuptools") is None:
        return "mypy is not installed (pip install 'edged[compile]')"
    compiler = os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc"
    if shutil.which(shlex.split(compiler)[0]) is None:
        return f"there is no C compiler ({compiler}; on Debian: apt-get install gcc)"
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        return f"there are no headers of Python ({header}; on Debian: apt-get install python3-dev)"
    return None


def _translate(workshop: Path) -> None:
    """Run mypyc and the compiler in ``workshop``. Raises `Failed`."""
    files = [f"{name.replace('.', '/')}.py" for name in MODULES]
    (workshop / "setup.py").write_text(_SETUP.format(files=files))
    # Warnings about generated code help nobody, and looking for them takes twice the time.
    flags = f"{os.environ.get('CFLAGS', '')} -w -Wno-all".strip()
    _run([sys.executable, "setup.py"], workshop, CFLAGS=flags)


def _collect(workshop: Path, current: str) -> Path:
    """The build, complete and tried, in a directory of its own. Raises `Failed`."""
    suffix = EXTENSION_SUFFIXES[0]
    build = workshop / "_compiled"
    build.mkdir()
    for name in (_LIBRARY, *MODULES):
        shutil.copy(workshop / f"{name.replace('.', '/')}{suffix}", build / f"{name}{suffix}")
    manifest = {"fingerprint": current, "library": _LIBRARY, "modules": MODULES}
    (build / MANIFEST).write_text(json.dumps(manifest, indent=1))
    every = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in sources()
        if file.name not in ("__init__.py", "__main__.py")
    ]
    _run([sys.executable, "-c", _TRY, str(build), *every], ROOT, EDGED_COMPILED="1")
    return build


def _run(command: list[str], directory: Path, **environment: str) -> None:
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line and "warning:" not in line]
        print("\n".join(lines[-20:]), file=sys.stderr)
        raise Failed("not compiled: the above went wrong; edged runs without it, more slowly")


def _install(build: Path) -> None:
    """Put the build in place; a running edged keeps the files that it has open."""
    new = BUILD.with_name("_compiled.new")
    try:
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(build, new)
        shutil.rmtree(BUILD, ignore_errors=True)
        new.rename(BUILD)
    except OSError as error:
        raise Failed(f"not compiled: {BUILD} cannot be written: {error.strerror}") from None
