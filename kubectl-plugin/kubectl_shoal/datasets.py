"""kubectl shoal datasets: how large, how much of it is cached, and how many reads the cache answered."""

from __future__ import annotations

import argparse
import time

from kubectl_shoal import conditions, objects, options, output, watching
from kubectl_shoal.kubectl import Kubectl
from kubectl_shoal.objects import Object

HEADER = ("NAME", "POOL", "READY", "REASON", "OBJECTS", "SIZE", "CACHED", "HIT RATIO", "SCANNED", "SOURCE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="DATASET", nargs="?", help="this one only")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="those of all namespaces")
    options.add_watch(parser)


def run(arguments: argparse.Namespace) -> int:
    kubectl = Kubectl.of(arguments)

    def look() -> str:
        found = _find(arguments, kubectl)
        if arguments.output != "table":
            return output.document({"apiVersion": "v1", "kind": "List", "items": found}, arguments.output)
        if not found:
            where = "any namespace" if arguments.all_namespaces else f"namespace {kubectl.namespace}"
            return f"There is no Dataset in {where}.\n"
        return shown(found, time.time(), with_namespace=arguments.all_namespaces)

    watching.show(arguments, look)
    return 0


def _find(arguments: argparse.Namespace, kubectl: Kubectl) -> list[Object]:
    if arguments.name is not None and not arguments.all_namespaces:
        return [objects.dataset(kubectl, kubectl.namespace, arguments.name)]
    found = objects.datasets(kubectl, None if arguments.all_namespaces else kubectl.namespace)
    return [each for each in found if arguments.name in (None, each["metadata"]["name"])]


def shown(found: list[Object], now_s: float, *, with_namespace: bool) -> str:
    """The table."""
    rows: list[list[str]] = []
    for each in found:
        meta, status = each["metadata"], each.get("status", {})
        cells = [
            meta["name"], each["spec"]["pool"], conditions.status_of(each, "Ready"),
            conditions.by_type(each).get("Ready", {}).get("reason", ""),
            *(str(status.get(name, "")) for name in ("objects", "size", "cachedPercent", "hitRatio")),
            objects.age(status.get("lastScanTime", ""), now_s), each["spec"]["source"]["uri"],
        ]  # fmt: skip
        rows.append([meta["namespace"], *cells] if with_namespace else cells)
    return output.table(("NAMESPACE", *HEADER) if with_namespace else HEADER, rows)
