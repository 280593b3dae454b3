"""Every mistake that a configuration can hold, with its exact position, from config_mistakes/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from edged.config import ConfigError, load

HERE = Path(__file__).parent / "config_mistakes"
EXPECTED = re.compile(r"(?:(\S+\.ya?ml):)?(\d+):(\d+) ([^: ]*): (.+)")


class Case(NamedTuple):
    title: str
    files: dict[str, str]
    expected: list[tuple[str, int, int, str, str]]


def cases() -> list[Case]:
    found = []
    for source in sorted(HERE.glob("*.txt")):
        for block in source.read_text().split("### ")[1:]:
            title, _, rest = block.partition("\n")
            body, _, told = rest.rpartition("\n---\n")
            files, name = {"edged.yaml": ""}, "edged.yaml"
            for line in body.splitlines(keepends=True):
                if line.startswith("@@ "):
                    name = line[3:].strip()
                    files[name] = ""
                else:
                    files[name] += line
            expected = []
            for line in told.splitlines():
                match = EXPECTED.fullmatch(line)
                assert match, line
                file, row, column, where, text = match.groups()
                expected.append((file or "edged.yaml", int(row), int(column), where, text))
            found.append(Case(f"{source.stem}: {title}", files, expected))
    return found


CASES = cases()


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory / "edged.yaml"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_mistake(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, case.files))
    found = {
        (str(m.file.relative_to(tmp_path)), *m.mark, m.where): str(m).replace(f"{tmp_path}/", "")
        for m in caught.value.mistakes
    }
    assert len(found) == len(caught.value.mistakes), "one mistake is told once"
    report = "\n".join(found.values())
    assert {key[:4] for key in case.expected} == set(found), report
    for *key, text in case.expected:
        assert text in found[tuple(key)], report
    assert "hunter2" not in report


def test_there_are_many_cases() -> None:
    assert len(CASES) >= 60
