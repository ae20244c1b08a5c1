"""The `shoal` command: one module per subcommand, and this table that joins them.

A subcommand module has `add_arguments(parser)` and `run(arguments) -> int`. Only the module that was asked for is
imported, so that `shoal --help` and errors of usage cost no more than `import shoal`. Exit codes are the same for all:
0 it worked, 1 an operation failed (one line on stderr names the URL or field), 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

COMMANDS = {
    "ls": "list objects below a URL: size, how much is cached, where",
    "stat": "show one object, or the node",
    "cat": "write an object to standard output",
    "warm": "bring objects into the cache, and check that they are there",
    "evict": "drop objects from the cache, on every node",
    "locate": "show which nodes own and hold the blocks of an object",
    "explain": "say which node a read goes to and why, or why it misses",
    "nodes": "show the nodes of the cluster",
    "drain": "have a node hand its blocks over to the others",
    "top": "watch the node at work",
    "doctor": "check this machine, the node and an origin, and say what to do",
    "bench": "run the benchmarks",
    "serve": "run a node in the foreground",
    "stop": "end your embedded node",
}

OK, FAILED, USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _parse(words)
        code = arguments.run(arguments)
        sys.stdout.flush()  # here, where a reader that has gone is no surprise
        return code
    except SystemExit as stopped:  # argparse: --help, or a usage error that it has printed
        return stopped.code if isinstance(stopped.code, int) else USAGE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        _close_quietly()
        return OK
    except Exception as error:
        line = _one_line(error)
        if line is None:
            raise
        print(f"shoal: {line}", file=sys.stderr)
        return FAILED


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="shoal",
        description="Shoal, a distributed cache for machine learning.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage. 'shoal COMMAND --help' says more.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and end")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    wanted = next((word for word in words if not word.startswith("-")), None)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == wanted:
            module = importlib.import_module(f"shoal.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    if wanted == "bench":  # the benchmarks have a command line of their own, --help included
        place = words.index(wanted)
        return parser.parse_args(words[: place + 1], argparse.Namespace(words=words[place + 1 :]))
    arguments = parser.parse_args(words)
    if arguments.version:
        arguments.run = _version
    elif arguments.command is None:
        parser.print_usage(sys.stderr)
        parser.exit(USAGE, "shoal: a command is needed; see shoal --help\n")
    return arguments


def _version(_: argparse.Namespace) -> int:
    from importlib import metadata

    print(f"shoal {metadata.version('shoal')}")
    return OK


def _one_line(error: Exception) -> str | None:
    """What to print for an error that a user can act on; None for a bug, which deserves its traceback."""
    from shoal_core.errors import InvariantBroken, ShoalError

    if isinstance(error, ShoalError) and not isinstance(error, InvariantBroken):
        return " ".join(str(error).split())
    return str(error) if isinstance(error, OSError) else None


def _close_quietly() -> None:
    """Whoever read our output has gone, which is no failure; Python must not complain when it flushes at the end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
