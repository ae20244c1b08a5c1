"""Commands that only a node can answer: `shoal ...` in a pod of the pool, over that node's own socket.

`shoal://images/a.jpg` means the Dataset `images` of the namespace at hand; nodes call it `team-a.images`. Both
spellings are understood. The pool is the data set's; for another URL it is --pool, or the only one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from kubectl_shoal import objects, output
from kubectl_shoal.kubectl import Kubectl
from kubectl_shoal.objects import NodePod
from shoal_core import names
from shoal_core.errors import BadRequest

_SCHEME = "shoal://"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pool", metavar="NAME", help="for URLs that name no Dataset, where there are several pools")
    parser.add_argument("--node", metavar="NAME", help="the Kubernetes node whose cache node is asked; default: any")


def place(arguments: argparse.Namespace, kubectl: Kubectl, url: str) -> tuple[str, str]:
    """(pool, the URL as nodes know it)."""
    if not url.startswith(_SCHEME):
        if "://" not in url:
            raise BadRequest(f"{url}: not a URL, such as shoal://images/a.jpg or s3://bucket/a.jpg")
        return objects.only_pool(arguments, kubectl), url
    name, slash, rest = url.removeprefix(_SCHEME).partition("/")
    if not names.is_dataset(name):
        raise BadRequest(f"{url}: {name or 'nothing'} names no data set: {names.DATASET_RULE}")
    namespace, dot, label = name.partition(".")
    if not dot:
        namespace, label = kubectl.namespace, name
    found = objects.dataset(kubectl, namespace, label)
    pool = found["spec"]["pool"]
    if arguments.pool not in (None, pool):
        raise BadRequest(f"--pool {arguments.pool}: Dataset {namespace}/{label} is in pool {pool}")
    return pool, f"{_SCHEME}{namespace}.{label}{slash}{rest}"


def pod_for(arguments: argparse.Namespace, kubectl: Kubectl, urls: Sequence[str]) -> tuple[NodePod, list[str]]:
    """The pod to ask, and the URLs as it knows them."""
    places = [place(arguments, kubectl, url) for url in urls]
    pools = sorted({pool for pool, _ in places})
    if len(pools) != 1:
        raise BadRequest(f"these URLs are in several pools, {', '.join(pools)}: ask for each by itself")
    return objects.choose_pod(arguments, kubectl, pools[0]), [url for _, url in places]


def run(arguments: argparse.Namespace, command: str, urls: Sequence[str], *flags: str, listed: bool = False) -> int:
    """`shoal COMMAND FLAGS URLS` there; its output and its exit code. `listed`: documents are a list, also a single."""
    kubectl = Kubectl.of(arguments)
    pod, known = pod_for(arguments, kubectl, urls)
    words = ["shoal", command, f"--address={pod.socket}", *flags]
    if arguments.output == "table":
        code, printed, errors = kubectl.exec(pod.namespace, pod.name, objects.CONTAINER, [*words, *known])
        output.write(printed)
    else:
        code, printed, errors = kubectl.exec(pod.namespace, pod.name, objects.CONTAINER, [*words, "--json", *known])
        output.write(_reformed(printed, arguments.output, listed=listed))
    sys.stderr.write(errors)
    return code


def _reformed(lines: str, form: str, *, listed: bool) -> str:
    """The command's documents, one a line: several as a list, one as itself unless `listed`."""
    found: list[Any] = [json.loads(line) for line in lines.splitlines() if line.strip()]
    if not found:
        return ""
    return output.document(found[0] if len(found) == 1 and not listed else found, form)
