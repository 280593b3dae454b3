"""The command line. Every command ends with an exit status and a sentence, never a traceback.

Exit status: 0 done, 1 it failed (and said why), 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from edged import compiled
from edged.failure import Failed

DEFAULT_CONFIG = "/etc/edged/edged.yaml"
DEFAULT_RELAY_CONFIG = "/etc/edged/relay.yaml"
DEFAULT_ADMIN = "127.0.0.1:7071"
_HOT = ("run", "relay", "demo", "version")
"""Commands that move bytes, or tell how."""


class _Parser(argparse.ArgumentParser):
    """Wrong use is told in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the result is the exit status."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what the terminal cannot show becomes "?"
    try:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        status = _run(arguments)
        if sys.stdout is not None:  # ``>&-``
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except Failed as failed:
        print(f"edged: {failed}", file=sys.stderr)
        return failed.status
    except BrokenPipeError:
        # Whoever read our output stopped; keep the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:  # the last resort: users get a sentence
        if os.environ.get("EDGED_DEBUG"):
            raise
        text = " ".join(str(error).split()) or "no details"
        print(
            f"edged: a bug in edged: {type(error).__name__}: {text} (EDGED_DEBUG=1 shows where)",
            file=sys.stderr,
        )
        return 70
    return status


def _run(a: argparse.Namespace) -> int:
    """Import only what the command needs: most of them must start quickly."""
    command: str = a.command
    if command in _HOT:
        compiled.activate()
    if command == "run":
        from edged.process import run

        return run(a.config)
    if command == "relay":
        from edged.commands.relay import relay

        return relay(a.config, check=a.check)
    if command == "version":
        return _version()
    if command == "compile":
        from edged.commands.compile import compile_modules

        return compile_modules(if_possible=a.if_possible)
    if command in ("check", "schema"):
        from edged.commands import config

        return config.check(a.config) if command == "check" else config.schema(a.of)
    if command in ("status", "why", "reload", "drill"):
        from edged.commands import admin

        client = admin.Client(a.admin)
        if command == "drill":
            from edged.commands.drill import drill

            return drill(client, a.line, for_s=a.seconds, force=a.force, as_json=a.json)
        if command == "status":
            return admin.status(client, as_json=a.json)
        if command == "why":
            return admin.why(client, a.what, body=a.bytes, stream=a.stream, as_json=a.json)
        return admin.reload(client)
    if command == "probe":
        from edged.commands.probe import probe

        return probe(a.url, a.line, a.config, timeout_s=a.timeout, as_json=a.json)
    from edged.lab.demo import run_demo

    return run_demo(seconds=a.seconds, as_json=a.json)


def _version() -> int:
    import platform

    from edged.version import VERSION

    python = f"{platform.python_implementation()} {platform.python_version()}"
    print(f"edged {VERSION} ({python}, {compiled.state()})")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="edged",
        description="Measures every line to every upstream and sends each HTTP request over the "
        "best one.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    _config_commands(commands)
    _admin_commands(commands)
    _other_commands(commands)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    known = list(commands.choices)
    if list(argv) == ["--version"]:
        argv = ["version"]
    if not argv:
        parser.error(f"no command given; commands: {', '.join(known)}")
    if not argv[0].startswith("-") and argv[0] not in known:
        parser.error(_unknown(argv[0], known))
    return parser.parse_args(argv)


def _unknown(word: str, known: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown command {word!r}; {hint}commands: {', '.join(known)}"


_Commands = argparse._SubParsersAction  # argparse gives this type no public name


def _config_commands(commands: _Commands[_Parser]) -> None:
    run = commands.add_parser("run", help="run the daemon", description="Run the daemon.")
    check = commands.add_parser(
        "check",
        help="explain every mistake in a configuration",
        description="Explain every mistake in a configuration with file:line:column.",
    )
    for parser in (run, check):
        _add_config(parser)
    schema = commands.add_parser(
        "schema",
        help="print the JSON Schema of edged.yaml, relay.yaml or a policy",
        description="Print the JSON Schema of edged.yaml, of relay.yaml or of a policy file.",
    )
    kinds = ("config", "policy", "relay")
    schema.add_argument("of", nargs="?", choices=kinds, default="config", metavar="|".join(kinds))
    relay = commands.add_parser(
        "relay",
        help="run a relay for edges elsewhere",
        description="Run a relay: a host abroad through which edges carry on over any line.",
    )
    relay.add_argument(
        "-c",
        "--config",
        default=DEFAULT_RELAY_CONFIG,
        metavar="FILE",
        help=f"default {DEFAULT_RELAY_CONFIG}",
    )
    relay.add_argument("--check", action="store_true", help="only explain every mistake in it")


def _admin_commands(commands: _Commands[_Parser]) -> None:
    status = commands.add_parser(
        "status",
        help="show lines, upstreams and paths of a running daemon",
        description="Show lines, upstreams and paths of a running daemon.",
    )
    why = commands.add_parser(
        "why",
        help="explain the choice for a URL now, or for a recent request",
        description="Every candidate path with its cost, part by part, and what decided: for a URL "
        "or a gateway path now, or for a recent request by its id (Edged-Request-Id).",
    )
    why.add_argument("what", metavar="URL|request-id")
    why.add_argument("--bytes", type=_whole, default=0, help="size of the request body; default 0")
    why.add_argument("--stream", action="store_true", help="the answer is a stream")
    reload = commands.add_parser(
        "reload",
        help="make a running daemon read its configuration again",
        description="Make a running daemon read its configuration again: all of it, or nothing "
        "and a message.",
    )
    drill = commands.add_parser(
        "drill",
        help="rehearse a line's death on a running daemon, and tell what traffic felt",
        description="The daemon drops all packets of one of its lines, and its dials there, for a "
        "while; nothing else on the host is touched. Refused when nothing else is UP. Exit status "
        "0 only if no request failed or was broken.",
    )
    drill.add_argument("what", choices=("blackhole",), help="nothing comes or goes, and no error")
    drill.add_argument("line", metavar="LINE")
    drill.add_argument(
        "--for", dest="seconds", type=_seconds, default=10.0, metavar="T", help="default 10s"
    )
    drill.add_argument("--force", action="store_true", help="even if nothing else is UP")
    for parser in (status, why, reload, drill):
        parser.add_argument(
            "--admin",
            default=os.environ.get("EDGED_ADMIN") or DEFAULT_ADMIN,
            metavar="ADDRESS:PORT",
            help=f"admin listener (default $EDGED_ADMIN or {DEFAULT_ADMIN})",
        )
    for parser in (status, why, drill):
        parser.add_argument("--json", action="store_true", help="print JSON")


def _other_commands(commands: _Commands[_Parser]) -> None:
    probe = commands.add_parser(
        "probe",
        help="measure a URL over each line once",
        description="Measure a URL over each line once: DNS, connect, TLS, first byte, ICMP, QUIC.",
    )
    probe.add_argument("url", metavar="URL")
    probe.add_argument("--line", action="append", metavar="L", help="only this line (repeatable)")
    probe.add_argument("--timeout", type=_seconds, default=5.0, metavar="T", help="default 5s")
    probe.add_argument("--json", action="store_true", help="print JSON")
    _add_config(probe, f"whose lines are used (default {DEFAULT_CONFIG}, else the system's route)")
    demo = commands.add_parser(
        "demo",
        help="show edged at work on emulated lines",
        description="Emulated lines, an origin, traffic, a line that dies silently and returns. "
        "Needs no root and no network.",
    )
    demo.add_argument("--seconds", type=_seconds, default=None, help="end by itself after N")
    demo.add_argument("--json", action="store_true", help="no live view; the last line is JSON")
    build = commands.add_parser(
        "compile",
        help="compile the hot modules for this Python",
        description="Compile the modules on a request's way for this Python, with mypyc and a C "
        "compiler. `edged run` uses the result as long as the sources are the same.",
    )
    build.add_argument(
        "--if-possible", action="store_true", help="be content where it cannot be done"
    )
    commands.add_parser("version", help="print the version", description="Print the version.")


def _add_config(parser: _Parser, text: str = f"default {DEFAULT_CONFIG}") -> None:
    given = None if "else" in text else DEFAULT_CONFIG
    parser.add_argument("-c", "--config", default=given, metavar="FILE", help=text)


def _seconds(text: str) -> float:
    from policies.schema import parse_duration

    try:
        value = float(text) if text.replace(".", "", 1).isdigit() else parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    assert isinstance(value, float)
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r}: more than 0 and at most a day, as 30s or 5m")
    return value


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
