"""``edged drill``: a line's death, rehearsed on a running daemon, and what traffic felt.

The daemon ends the drill when the connection that began it ends, so that a command which is killed
leaves nothing behind. Ctrl-C asks for the end, and for the report; a second one does not wait.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

from edged.admin.text import ms
from edged.commands.admin import Client
from edged.failure import Failed

Data = dict[str, Any]

_UNFILTERED = (
    "this kernel lets only privileged processes filter their sockets: "
    "what is already on its way in still arrives"
)


def drill(client: Client, line: str, *, for_s: float, force: bool, as_json: bool) -> int:
    """Rehearse, print what happens, and raise `Failed` if anybody was failed."""
    target = f"/drill?line={quote(line, safe='')}&for={for_s:g}&force={int(force)}"
    report: Data | None = None
    with _interruptible(client):
        for event in client.events("POST", target):
            if event["event"] == "report":
                report = event
            elif not as_json and (text := _text(line, event)):
                print(f"{event['at_s']:7.2f} s  {text}", flush=True)
    if report is None:
        raise Failed("the daemon ended before the drill did; nothing of it remains")
    for name in ("event", "at_s"):
        del report[name]
    if as_json:
        print(json.dumps(report))
    else:
        print(*_summary(report), sep="\n")
    if not report["ok"]:
        raise Failed(
            f"traffic felt it: {report['failed']} of {report['requests']} requests failed, "
            f"{report['broken']} broken, {report['tunnels_closed']} tunnels closed"
        )
    return 0


@contextmanager
def _interruptible(client: Client) -> Iterator[None]:
    """Ctrl-C ends the drill, not the command."""

    def interrupted(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("ending the drill; once more to leave", file=sys.stderr)
        client.ask("DELETE", "/drill")

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _text(line: str, event: Data) -> str:
    match event["event"]:
        case "silent":
            used = ", ".join(event["in_use"])
            which = f"{used} takes it now" if used else "no upstream takes it now"
            filtered = "" if event["inward"] else f"; {_UNFILTERED}"
            return f"{line} is silent for {event['for_s']:g} s; {which}{filtered}"
        case "verdict":
            return f"{line} is {event['verdict']}: {event['reason']}"
        case "moved":
            return f"a request completed over {event['path']}"
        case "back":
            return f"{line} is back" + ("; watching it return" if event["watching"] else "")
        case "returned":
            return f"a request completed over {event['path']} again"
    return ""


def _summary(report: Data) -> Iterator[str]:
    r = report
    yield ""
    longest = ""
    if r["longest_s"] is not None:
        longest = f"; the longest waited {_time(r['longest_s'])} (edged why {r['longest_id']})"
    yield f"{r['requests']} requests, {r['failed']} failed, {r['broken']} broken{longest}"
    if r["errors"]:
        yield "errors: " + ", ".join(f"{name} {count}" for name, count in r["errors"].items())
    yield (
        f"{r['moved']} moved to another line, {r['migrated']} of them unrepeated, "
        f"{r['replayed']} sent again; {r['hedged']} hedged"
    )
    if r["tunnels_closed"]:
        yield f"{r['tunnels_closed']} CONNECT tunnels closed: they cannot change their line"
    if r["unfinished"]:
        yield f"{r['unfinished']} were not over at the end of the drill"
    times = [("SUSPECT after", r["suspect_s"]), ("DOWN after", r["down_s"])]
    if r["in_use"]:
        times.append(("the next request completed after", r["gap_s"]))
    yield ", ".join(f"{text} {_time(seconds)}" for text, seconds in times)
    times = [("UP after", r["up_s"])]
    if r["in_use"]:
        times.append(("in use again after", r["returned_s"]))
    returned = ", ".join(f"{text} {_time(seconds)}" for text, seconds in times)
    yield f"back after {r['silent_s']:.1f} s ({r['ended_by']}): {returned}"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s" if seconds >= 10 else ms(seconds * 1e3)
