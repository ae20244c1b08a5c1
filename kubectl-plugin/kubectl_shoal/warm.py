"""kubectl shoal warm: a Preload for a data set, made and followed.

The nodes do the work and the operator adds it up, so that nothing is lost when this command is: the Preload goes on,
and `kubectl get preload` shows it. It is deleted by itself after --ttl.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from kubectl_shoal import conditions, objects, output, progress
from kubectl_shoal.kubectl import Kubectl
from kubectl_shoal.objects import API, Object
from shoal_core.errors import NotFound

POLL_S = 1.0
TTL_S_DEFAULT = 24 * 3600
_ENDED = ("Complete", "Failed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="of the namespace at hand")
    parser.add_argument("paths", metavar="PATH", nargs="*", help="only what lies below these: train/")
    parser.add_argument("--wait", action="store_true", help="follow it to its end; fail if it does")
    parser.add_argument("--bytes-per-second", metavar="QUANTITY", help="at most, for the whole pool: 500Mi")
    parser.add_argument("--no-verify", action="store_true", help="do not check the bytes once they are there")
    parser.add_argument(
        "--ttl",
        metavar="SECONDS",
        type=count,
        default=TTL_S_DEFAULT,
        help="the Preload goes so long after its end (1 day)",
    )


def count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    kubectl = Kubectl.of(arguments)
    objects.dataset(kubectl, kubectl.namespace, arguments.dataset)
    (made,) = kubectl.create(_preload(arguments, kubectl.namespace))
    name = made["metadata"]["name"]
    if arguments.wait:
        made = _follow(kubectl, name, shown=arguments.output == "table")
    if arguments.output != "table":
        output.write(output.document(made, arguments.output))
    elif not arguments.wait:
        output.write(f"preload/{name} made; kubectl get preload {name} -n {kubectl.namespace} -w follows it\n")
    return 1 if arguments.wait and _phase(made) != "Complete" else 0


def _preload(arguments: argparse.Namespace, namespace: str) -> Object:
    spec: dict[str, Any] = {
        "dataset": arguments.dataset,
        "paths": arguments.paths,
        "policy": "Once",
        "verify": not arguments.no_verify,
        "ttlSecondsAfterFinished": arguments.ttl,
    }
    if arguments.bytes_per_second:
        spec["bytesPerSecond"] = arguments.bytes_per_second
    return {
        "apiVersion": "shoal.dev/v1alpha1",
        "kind": "Preload",
        # The API server adds five characters, and a name has 63 at most.
        "metadata": {"generateName": f"{arguments.dataset[:57]}-", "namespace": namespace},
        "spec": spec,
    }


def _follow(kubectl: Kubectl, name: str, *, shown: bool) -> Object:
    """As it is in the end."""
    path = f"{API}/namespaces/{kubectl.namespace}/preloads/{name}"
    with progress.bar(name, shown=shown) as bar:
        while True:
            found = kubectl.find(path)
            if found is None:
                raise NotFound(f"Preload {kubectl.namespace}/{name}: somebody deleted it")
            status = found.get("status", {})
            parts = [_phase(found), status.get("rate", ""), status.get("eta", "") and f"{status['eta']} left"]
            bar(status.get("bytesDone", 0), status.get("bytesTotal", 0), ", ".join(filter(None, parts)))
            if _phase(found) in _ENDED:
                break
            time.sleep(POLL_S)
    if shown:
        output.write(_result(found))
    return found


def _phase(found: Object) -> str:
    return found.get("status", {}).get("phase", "Pending")


def _result(found: Object) -> str:
    status = found["status"]
    why = conditions.by_type(found).get(_phase(found), {}).get("message", "")
    objects_done, objects_found = status.get("objectsDone", 0), status.get("objectsScanned", 0)
    numbers = f"{objects_done:,} of {objects_found:,} objects, {status.get('bytesDone', 0):,} bytes"
    checked = f", {status['bytesVerified']:,} checked" if status.get("bytesVerified") else ""
    lines = [f"{_phase(found)}: {numbers}{checked}", why, *status.get("errors", [])]
    return "".join(f"{output.printable(line)}\n" for line in lines if line)
