"""`kubectl shoal __complete WORD...`: what the last word may become, a line each, then kubectl's directive.

kubectl asks a program `kubectl_complete-shoal` for this, and the shells' own scripts (`completion`) ask us directly.
The protocol is that of kubectl's own completion: `:4` at the end means that files are no answer. Names come from the
cluster; when it does not answer there are none.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
from collections.abc import Iterable, Iterator

import kubectl_shoal
from kubectl_shoal import objects, options, output
from kubectl_shoal.kubectl import Kubectl
from shoal_core.errors import ShoalError

NO_FILES, FILES = ":4", ":0"


def run(arguments: argparse.Namespace) -> int:
    *before, last = arguments.words or [""]
    found, directive = _candidates(before, last)
    for each in sorted({each for each in found if each.partition("\t")[0].startswith(last)}):
        output.write(f"{each}\n")
    output.write(f"{directive}\n")
    return 0


def _candidates(before: list[str], last: str) -> tuple[Iterable[str], str]:
    option = before[-1] if before else ""
    if option in ("-o", "--output"):
        return options.FORMATS, NO_FILES
    if option == "--kubeconfig":
        return (), FILES
    if option in ("-n", "--namespace", "--system-namespace"):
        return _names(before, "namespaces"), NO_FILES
    if option in ("--pool", "--node"):
        return _names(before, "pools" if option == "--pool" else "nodes"), NO_FILES
    command = options.command_of(before)
    if command is None:
        if last.startswith("-"):
            return _flags(None), NO_FILES
        return (f"{name}\t{text}" for name, text in kubectl_shoal.COMMANDS.items()), NO_FILES
    if command not in kubectl_shoal.COMMANDS:
        return (), NO_FILES
    return (_flags(command) if last.startswith("-") else _operands(before, command)), NO_FILES


def _flags(command: str | None) -> Iterator[str]:
    parser = argparse.ArgumentParser(add_help=False)
    options.add_everywhere(parser)
    if command is not None:
        importlib.import_module(f"kubectl_shoal.{command}").add_arguments(parser)
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage] - argparse tells it nowhere else
        yield from (f"{flag}\t{action.help}" for flag in action.option_strings if flag.startswith("--"))
    yield "--help\tshow what the command takes"


def _operands(before: list[str], command: str) -> Iterable[str]:
    """Names for what is no option."""
    after = before[before.index(command) + 1 :]
    given = [word for word in after if not word.startswith("-")]
    match command:
        case "completion":
            return "bash", "zsh", "fish"
        case "grant" if not given:
            return "dataset", "use"
        case "datasets" | "warm" | "grant":
            return _names(before, "datasets")
        case "status" | "top" | "doctor":
            return _names(before, "pools")
        case "drain":
            return _names(before, "nodes")
        case _:
            return (f"shoal://{name}/" for name in _names(before, "datasets"))


def _names(before: list[str], what: str) -> list[str]:
    """From the cluster."""
    parser = argparse.ArgumentParser(add_help=False)
    options.add_everywhere(parser)
    if before and before[-1] in options.WITH_VALUE:
        before = before[:-1]  # its value is what is being asked for
    with contextlib.suppress(SystemExit, ShoalError):
        arguments, _ = parser.parse_known_args(before, options.defaults())
        kubectl = Kubectl.of(arguments)
        match what:
            case "namespaces":
                found = kubectl.get("/api/v1/namespaces")["items"]
            case "pools":
                found = objects.pools(kubectl)
            case "datasets":
                found = objects.datasets(kubectl, kubectl.namespace)
            case _:
                return [pod.node for pod in objects.node_pods(kubectl, arguments.system_namespace)]
        return [each["metadata"]["name"] for each in found]
    return []
