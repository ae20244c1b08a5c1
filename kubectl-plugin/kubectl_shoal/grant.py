"""kubectl shoal grant: the Role and RoleBinding that give one right and no other, printed for `kubectl apply -f -`.

    kubectl shoal grant dataset images -n team-a | kubectl apply -f -                     the pool may read its secret
    kubectl shoal grant use images -n team-a --to team-b/train | kubectl apply -f -       an account's pods may read it

Nothing is changed here: what is printed can be read, kept in a repository, or applied by somebody else. With --secret
and --pool the first needs no access to the cluster at all.
"""

from __future__ import annotations

import argparse
from typing import Any

from kubectl_shoal import objects, options, output
from kubectl_shoal.kubectl import Kubectl
from kubectl_shoal.objects import SYSTEM_NAMESPACE, Object
from shoal_core import names
from shoal_core.errors import BadRequest

_RBAC = "rbac.authorization.k8s.io"
_NAME_CHARACTERS_MAX = 253


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(metavar="WHAT", dest="what", required=True)
    dataset = kinds.add_parser("dataset", help="let the pool of a data set read the secret that it names")
    dataset.add_argument("name", metavar="DATASET")
    dataset.add_argument("--secret", metavar="NAME", help="instead of asking the Dataset which one it is")
    dataset.add_argument("--pool", metavar="NAME", help="instead of asking the Dataset which one it is")
    use = kinds.add_parser("use", help="let the pods of a service account use a data set")
    use.add_argument("name", metavar="DATASET")
    use.add_argument(
        "--to", "--serviceaccount", metavar="NAMESPACE/NAME", required=True, help="the account; NAMESPACE:NAME will do"
    )
    for each in (dataset, use):
        options.add_everywhere(each)


def run(arguments: argparse.Namespace) -> int:
    kubectl = Kubectl.of(arguments)
    if not names.is_label(arguments.name):
        raise BadRequest(f"{arguments.name}: not the name of a Dataset; its namespace is given with -n")
    granted = _secret(arguments, kubectl) if arguments.what == "dataset" else _use(arguments, kubectl.namespace)
    output.write(output.documents(granted, "yaml" if arguments.output == "table" else arguments.output))
    return 0


def _secret(arguments: argparse.Namespace, kubectl: Kubectl) -> list[Object]:
    namespace, secret, pool = kubectl.namespace, arguments.secret, arguments.pool
    if secret is None or pool is None:
        spec = objects.dataset(kubectl, namespace, arguments.name)["spec"]
        pool = pool or spec["pool"]
        secret = secret or spec["source"].get("secretRef", {}).get("name")
    if secret is None:
        raise BadRequest(
            f"Dataset {namespace}/{arguments.name}: spec.source.secretRef names no secret, so there is nothing to grant"
        )
    rule = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [secret], "verbs": ["get"]}
    account = {"kind": "ServiceAccount", "name": f"shoal-{pool}", "namespace": _system(arguments, kubectl, pool)}
    return _role(f"shoal-dataset-{arguments.name}", namespace, rule, account)


def _system(arguments: argparse.Namespace, kubectl: Kubectl, pool: str) -> str:
    """Where the pool's account is. Who grants a secret mostly may not look there."""
    if arguments.system_namespace is not None:
        return arguments.system_namespace
    if arguments.secret is not None and arguments.pool is not None:
        return SYSTEM_NAMESPACE
    return next((pod.namespace for pod in objects.visible_pods(kubectl) if pod.pool == pool), SYSTEM_NAMESPACE)


def _use(arguments: argparse.Namespace, namespace: str) -> list[Object]:
    home, separator, account = arguments.to.replace(":", "/").partition("/")
    if not (separator and names.is_label(home) and account and "/" not in account):
        raise BadRequest(f"--to {arguments.to}: not NAMESPACE/NAME of a service account, such as team-b/train")
    rule = {
        "apiGroups": ["shoal.dev"], "resources": ["datasets"], "resourceNames": [arguments.name], "verbs": ["use"],
    }  # fmt: skip
    subject = {"kind": "ServiceAccount", "name": account, "namespace": home}
    # Each account has its own: applying a second grant must not take the first one back.
    place = account if home == namespace else f"{home}-{account}"
    return _role(f"shoal-use-{arguments.name}-{place}"[:_NAME_CHARACTERS_MAX], namespace, rule, subject)


def _role(name: str, namespace: str, rule: dict[str, Any], subject: dict[str, str]) -> list[Object]:
    meta = {"name": name, "namespace": namespace}
    version = f"{_RBAC}/v1"
    return [
        {"apiVersion": version, "kind": "Role", "metadata": meta, "rules": [rule]},
        {
            "apiVersion": version,
            "kind": "RoleBinding",
            "metadata": dict(meta),
            "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": name},
            "subjects": [subject],
        },
    ]
