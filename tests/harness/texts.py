"""Text as real requests have it, without a download: for whatever measures compression.

English is the language reference that comes with Python, code is its standard library, tool results
are made of both. There is no Chinese text to take: `chinese` draws words by Zipf's law from a made
vocabulary of the characters of GB 2312 level 1. Its 4,000 words were chosen so that 100 KB shrink
as 100 KB of a newspaper do (People's Daily of January 1998: zstd at level 3 by 53%, xz by 60%).

Everything follows from its seed, and nothing is said twice.
"""

from __future__ import annotations

import itertools
import json
import random
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

LIBRARY = Path(sysconfig.get_path("stdlib"))
TURNS = 40
SMALLEST_BYTES, LARGEST_BYTES = 2 << 10, 300_000
"""Of a conversation's requests."""
_WORDS = 4000
_PUNCTUATION = "\uff0c\u3002\uff1b\uff1f\u3001"


@cache
def _vocabulary() -> tuple[list[str], list[float]]:
    """Words, most frequent first, and their cumulated weights."""
    rng = random.Random(7)
    rows = itertools.product(range(0xB0, 0xD8), range(0xA1, 0xFF))
    chars = [bytes(pair).decode("gb2312") for pair in rows if pair < (0xD7, 0xFA)]
    rng.shuffle(chars)
    weights = list(itertools.accumulate((n + 10) ** -0.8 for n in range(len(chars))))
    sizes = rng.choices((1, 2, 3, 4), (28, 60, 8, 4), k=_WORDS)
    words = []
    for rank, size in enumerate(sizes):
        size = 1 if rank < 40 and rng.random() < 0.7 else size  # frequent words are short
        words.append("".join(rng.choices(chars, cum_weights=weights, k=size)))
    return words, list(itertools.accumulate(1 / (n + 2.7) for n in range(_WORDS)))


def chinese(rng: random.Random) -> Iterator[str]:
    """Paragraphs without end."""
    words, weights = _vocabulary()
    while True:
        clauses = []
        for _ in range(rng.randrange(6, 24)):
            clauses += rng.choices(words, cum_weights=weights, k=rng.randrange(3, 12))
            clauses += rng.choices(_PUNCTUATION, (55, 32, 3, 4, 6))
        yield "".join(clauses) + "\n"


def english(rng: random.Random) -> Iterator[str]:
    """Each paragraph of the language reference once; some 460 KB."""
    paragraphs = [p for text in topics.values() for p in text.split("\n\n") if len(p) > 80]
    rng.shuffle(paragraphs)
    yield from (p + "\n\n" for p in dict.fromkeys(paragraphs))


_NO_SOURCE = {"encodings", "pydoc_data", "site-packages", "test", "tests", "idle_test"}
"""Tables, prose, and code that is not the library's own."""


def source_files(rng: random.Random, at_least: int = 4_000) -> list[Path]:
    """Modules of the standard library in some order."""
    files = [
        file
        for file in sorted(LIBRARY.rglob("*.py"))
        if _NO_SOURCE.isdisjoint(file.parts) and file.stat().st_size >= at_least
    ]
    rng.shuffle(files)
    return files


def take(paragraphs: Iterator[str], size: int) -> str:
    """The next ``size`` bytes, roughly."""
    taken: list[str] = []
    while size > 0:
        text = next(paragraphs)
        taken.append(text)
        size -= len(text.encode())
    return "".join(taken)


def _body(messages: list[dict[str, Any]], **fields: Any) -> bytes:
    """As the APIs' own clients write it."""
    document = {"model": "lab", "messages": messages, "stream": True, **fields}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _growth(turns: int, largest: int) -> Iterator[int]:
    """How long the request of each turn is at least."""
    for turn in range(turns):
        yield SMALLEST_BYTES + (largest - SMALLEST_BYTES) * turn // (turns - 1)


def chat(
    language: str, *, turns: int = TURNS, largest: int = LARGEST_BYTES, seed: int = 1
) -> list[bytes]:
    """The requests of a chat in ``"english"`` or ``"chinese"``: each repeats all before it."""
    rng = random.Random(seed)
    paragraphs = (english if language == "english" else chinese)(rng)
    messages = [{"role": "system", "content": take(paragraphs, 600)}]
    bodies: list[bytes] = []
    for size in _growth(turns, largest):
        missing = size - len(_body(messages))
        question = min(missing, rng.randrange(100, 1200)) if bodies else missing
        if missing - question > 400:
            messages.append({"role": "assistant", "content": take(paragraphs, missing - question)})
        messages.append({"role": "user", "content": take(paragraphs, question)})
        bodies.append(_body(messages))
    return bodies


_TOOLS = {
    "read_file": ("Reads a file and returns its lines with their numbers.", ("path", "offset")),
    "list_directory": ("Lists a directory with sizes and times.", ("path", "recursive")),
    "search": ("Searches files for a regular expression.", ("pattern", "path", "ignore_case")),
    "run_command": ("Runs a command and returns what it printed.", ("command", "timeout_s")),
}


def _tools(paragraphs: Iterator[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "description": f"{text} {take(paragraphs, 500)}",
            "input_schema": {
                "type": "object",
                "properties": {
                    field: {"type": "string", "description": take(paragraphs, 90)}
                    for field in fields
                },
                "required": list(fields[:1]),
            },
        }
        for name, (text, fields) in _TOOLS.items()
    ]


def _listing(rng: random.Random, folder: Path) -> str:
    entries = sorted(folder.iterdir())
    rng.shuffle(entries)
    return "\n".join(
        f"-rw-r--r-- 1 root root {entry.stat().st_size:8} Mar {rng.randrange(1, 29):2} "
        f"{rng.randrange(24):02}:{rng.randrange(60):02} {entry.name}"
        for entry in sorted(entries[:60])
    )


def _command_output(rng: random.Random, file: Path) -> str:
    names = rng.sample(file.read_text().split(), 40)
    lines = [
        f"tests/test_{file.stem}.py::test_{''.join(filter(str.isalnum, name))[:30]} "
        f"{rng.choice(('PASSED', 'PASSED', 'FAILED'))} [{rng.random() * 100:5.1f}%] "
        f"in {rng.lognormvariate(-4, 1.5):.4f}s"
        for name in names
    ]
    return "\n".join([*lines, f"{rng.randrange(40)} failed in {rng.random() * 30:.2f}s"])


def _step(rng: random.Random, file: Path, size: int) -> tuple[str, dict[str, Any], str]:
    """A tool, what it is asked and what it says."""
    lines = file.read_text().splitlines()
    choice = rng.randrange(6)
    if choice == 0:
        return "list_directory", {"path": str(file.parent)}, _listing(rng, file.parent)
    if choice == 1:
        return "run_command", {"command": f"pytest -v -k {file.stem}"}, _command_output(rng, file)
    if choice == 2:
        word = rng.choice(("return", "raise", "self", "if not"))
        found = [f"{file}:{n}:{line}" for n, line in enumerate(lines, 1) if word in line]
        return "search", {"pattern": word, "path": str(file)}, "\n".join(found)[: max(500, size)]
    start = rng.randrange(max(1, len(lines) - 300))
    text = "\n".join(f"{n:6}\t{line}" for n, line in enumerate(lines[start:], start + 1))
    return "read_file", {"path": str(file), "offset": start}, text[: max(500, size)]


def agent(*, turns: int = TURNS, largest: int = LARGEST_BYTES, seed: int = 1) -> list[bytes]:
    """The requests of an agent that works on code. As such clients do, it marks the end of what is
    to be cached, and the mark moves on with each request."""
    rng = random.Random(seed)
    paragraphs, files = english(rng), iter(source_files(rng))
    tools, system = _tools(paragraphs), take(paragraphs, 500)
    block: dict[str, Any] = {"type": "text", "text": take(paragraphs, 300)}
    messages = [{"role": "user", "content": [block]}]
    bodies: list[bytes] = []
    length = 0
    for size in _growth(turns, largest):
        while bodies and length < size:
            name, given, said = _step(rng, next(files), size - length)
            call = f"toolu_{rng.getrandbits(120):030x}"
            use = {"type": "tool_use", "id": call, "name": name, "input": given}
            talk = {"type": "text", "text": take(paragraphs, rng.randrange(60, 400))}
            block = {"type": "tool_result", "tool_use_id": call, "content": said}
            messages.append({"role": "assistant", "content": [talk, use]})
            messages.append({"role": "user", "content": [block]})
            length += len(json.dumps(messages[-2:]))
        marked = {**block, "cache_control": {"type": "ephemeral"}}
        messages[-1]["content"] = [marked]
        bodies.append(_body(messages, system=system, tools=tools, max_tokens=8192))
        messages[-1]["content"] = [block]
        length = len(bodies[-1])
    return bodies


def python_source(size: int = 50_000) -> list[bytes]:
    """The beginning of every module of the standard library that is so long."""
    files = source_files(random.Random(1), at_least=size)
    return [file.read_bytes()[:size] for file in files]


def chinese_prose(size: int = 100_000, seed: int = 1) -> bytes:
    """About ``size`` bytes, whole characters."""
    text = take(chinese(random.Random(seed)), size).encode()[:size]
    return text.decode(errors="ignore").encode()


def api_json(size: int = 200_000, seed: int = 1) -> bytes:
    """A list of repositories as a code host's API gives it: most of it names and URLs."""
    rng = random.Random(seed)
    words = [w for p in itertools.islice(english(rng), 400) for w in p.split() if w.isalpha()]
    listed: list[dict[str, Any]] = []
    length = 0
    while length < size:
        listed.append(_repository(rng, words))
        length += len(json.dumps(listed[-1])) + 2
    return json.dumps(listed).encode()[:size]


_OWNER_LINKS = (
    "followers following{/other_user} gists{/gist_id} starred{/owner}{/repo} subscriptions "
    "organizations repos events{/privacy} received_events"
)
_LINKS = (
    "forks keys{/key_id} collaborators{/collaborator} teams hooks issue_events{/number} events "
    "assignees{/user} branches{/branch} tags git_blobs{/sha} git_tags{/sha} git_refs{/sha} "
    "trees{/sha} statuses{/sha} languages stargazers contributors subscribers subscription "
    "commits{/sha} git_commits{/sha} comments{/number} issue_comment{/number} contents{+path} "
    "compare{/base}{head} merges archive{/format}{/ref} downloads issues{/number} pulls{/number} "
    "milestones{/number} notifications{since,all} labels{/name} releases{/id} deployments"
)


def _links(base: str, links: str) -> dict[str, str]:
    """``forks_url: BASE/forks`` and so on."""
    return {
        f"{link.partition('{')[0]}_url": f"{base}/{link.replace('_', '/', 1)}"
        for link in links.split()
    }


def _repository(rng: random.Random, words: list[str]) -> dict[str, Any]:
    owner = rng.choice(("edge-lab", "northwind", "quayside"))
    name = "-".join(rng.sample(words, 2)).lower()
    home = f"https://code.example/{owner}/{name}"
    url = f"https://api.code.example/repos/{owner}/{name}"
    user = f"https://api.code.example/users/{owner}"
    stars, forks = int(rng.paretovariate(0.7)), int(rng.paretovariate(1.0))

    def date() -> str:
        return f"202{rng.randrange(6)}-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}T" + (
            f"{rng.randrange(24):02}:{rng.randrange(60):02}:{rng.randrange(60):02}Z"
        )

    return {
        "id": rng.randrange(10**8, 10**9),
        "node_id": f"R_kgDO{rng.getrandbits(40):010x}",
        "name": name,
        "full_name": f"{owner}/{name}",
        "private": False,
        "owner": {
            "login": owner,
            "id": len(owner) * 1299709,
            "avatar_url": f"https://avatars.code.example/u/{len(owner) * 1299709}?v=4",
            "url": user,
            "html_url": f"https://code.example/{owner}",
            **_links(user, _OWNER_LINKS),
            "type": "Organization",
            "site_admin": False,
        },
        "html_url": home,
        "description": " ".join(rng.sample(words, rng.randrange(4, 14))),
        "fork": rng.random() < 0.2,
        "url": url,
        **_links(url, _LINKS),
        "created_at": date(),
        "updated_at": date(),
        "pushed_at": date(),
        "git_url": f"git:{home[6:]}.git",
        "ssh_url": f"git@code.example:{owner}/{name}.git",
        "clone_url": f"{home}.git",
        "homepage": None,
        "size": rng.randrange(20, 90_000),
        "stargazers_count": stars,
        "watchers_count": stars,
        "language": rng.choice(("Python", "Go", "Rust", "TypeScript", None)),
        "has_issues": True,
        "has_projects": True,
        "has_wiki": rng.random() < 0.7,
        "forks_count": forks,
        "mirror_url": None,
        "archived": rng.random() < 0.1,
        "disabled": False,
        "open_issues_count": rng.randrange(400),
        "license": {"key": "mit", "name": "MIT License", "spdx_id": "MIT"},
        "allow_forking": True,
        "topics": rng.sample(words, rng.randrange(6)),
        "visibility": "public",
        "forks": forks,
        "watchers": stars,
        "default_branch": rng.choice(("main", "master")),
    }
