"""`kubectl shoal`: what an administrator asks of pools, data sets and nodes. One module per subcommand, and a table.

A subcommand module has `add_arguments(parser)` and `run(arguments) -> int`. Only the module that was asked for is
imported, and Kubernetes is spoken to through the kubectl that we are a plugin of (`kubectl`): same contexts, same
credentials, and a start in a fifth of the time that a client library takes. Exit codes: 0 it worked, 1 an operation
failed (one line on stderr names the object and what is wrong with it), 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

COMMANDS = {
    "status": "show pools, their nodes, and what needs attention",
    "datasets": "show data sets: size, how much is cached, hits",
    "top": "watch the nodes of a pool at work",
    "locate": "show which nodes own and hold the blocks of an object",
    "explain": "say which node a read goes to and why, or why it misses",
    "warm": "fill a data set into its pool, and follow it",
    "evict": "drop objects from every node of a pool",
    "drain": "have a node hand its blocks over to the others",
    "doctor": "check the installation, your rights, and every node, and say what to do",
    "grant": "print the rights that let a pool read a secret, or a pod use a data set",
    "bench": "read a data set through a node, and measure it",
    "completion": "print the script that completes commands in a shell",
}
HIDDEN = {"__complete": "complete"}
"""What is called by scripts only, and its module."""

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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python must not complain when it flushes
        return OK
    except Exception as error:
        from shoal_core.errors import BadRequest, InvariantBroken, ShoalError

        if not isinstance(error, ShoalError) or isinstance(error, InvariantBroken):
            raise
        print(f"kubectl shoal: {' '.join(str(error).split())}", file=sys.stderr)
        return USAGE if isinstance(error, BadRequest) else FAILED


def _parse(words: Sequence[str]) -> argparse.Namespace:
    from kubectl_shoal import options

    parser = argparse.ArgumentParser(
        prog="kubectl shoal",
        description="Shoal, a distributed cache for machine learning: pools, data sets and nodes.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage. 'kubectl shoal COMMAND --help' says more.",
    )
    parser.add_argument("--version", action="store_true", help="print the version and end")
    options.add_everywhere(parser)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    wanted = options.command_of(words)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        options.add_everywhere(command)
        if name == wanted:
            _load(command, name)
    if wanted in HIDDEN:  # what is to be completed may be any words, also wrong ones
        module = importlib.import_module(f"kubectl_shoal.{HIDDEN[wanted]}")
        place = words.index(wanted)
        return argparse.Namespace(words=words[place + 1 :], run=module.run)
    arguments = parser.parse_args(words, options.defaults())
    if arguments.version:
        arguments.run = _version
    elif arguments.command is None:
        parser.print_usage(sys.stderr)
        parser.exit(USAGE, "kubectl shoal: a command is needed; see kubectl shoal --help\n")
    return arguments


def _load(parser: argparse.ArgumentParser, name: str) -> None:
    module = importlib.import_module(f"kubectl_shoal.{name}")
    module.add_arguments(parser)
    parser.set_defaults(run=module.run)


def _version(_: argparse.Namespace) -> int:
    from kubectl_shoal.doctor import versions

    print(f"kubectl-shoal {versions.own()}")
    return OK
