"""Certificates and kubeconfigs of a cluster, made with openssl, each once.

One authority signs for everybody; who somebody is stands in the subject, as Kubernetes reads it (CN the user, O the
group). A kubeconfig holds its certificate itself, so it can be copied alone.
"""

from __future__ import annotations

import base64
import json

from tests.cluster.layout import Layout
from tests.cluster.processes import run

_DAYS = 30
ADMIN = "/O=system:masters/CN=admin"


def prepare(layout: Layout) -> None:
    """The authority, the key for service account tokens, the API server and its clients of the control plane."""
    (layout.directory / "pki").mkdir(mode=0o700, exist_ok=True)
    if not layout.certificate("ca").exists():
        _new_key(layout, "ca")
        run(
            *("openssl", "req", "-x509", "-new", "-key", layout.key("ca"), "-out", layout.certificate("ca")),
            *("-days", _DAYS, "-subj", "/CN=shoal-test-ca"),
        )
    if not layout.key("service-accounts").exists():
        run("openssl", "genrsa", "-out", layout.key("service-accounts"), "2048")  # RSA: tokens are signed with it
    issue(layout, "apiserver", "/CN=kube-apiserver")
    for who, subject in {
        "admin": ADMIN,
        "controllers": "/CN=system:kube-controller-manager",
        "scheduler": "/CN=system:kube-scheduler",
        "proxy": "/CN=system:kube-proxy",
    }.items():
        client(layout, who, subject)


def client(layout: Layout, who: str, subject: str) -> None:
    """A certificate, and the kubeconfig that uses it."""
    issue(layout, who, subject)
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "shoal",
        "clusters": [
            {
                "name": "shoal",
                "cluster": {
                    "server": layout.api_url,
                    "certificate-authority-data": _base64(layout.certificate("ca").read_bytes()),
                },
            }
        ],
        "users": [
            {
                "name": who,
                "user": {
                    "client-certificate-data": _base64(layout.certificate(who).read_bytes()),
                    "client-key-data": _base64(layout.key(who).read_bytes()),
                },
            }
        ],
        "contexts": [{"name": "shoal", "context": {"cluster": "shoal", "user": who}}],
    }
    file = layout.kubeconfig(who)
    file.touch(mode=0o600)
    file.write_text(json.dumps(content, indent=1))


def issue(layout: Layout, who: str, subject: str, names: tuple[str, ...] = ()) -> None:
    """A key and a certificate, unless it has them. The API server's own names are in all of them and harm nobody."""
    if layout.certificate(who).exists():
        return
    own = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    addresses = ["127.0.0.1", layout.api_address, layout.api_service]
    alternatives = [f"DNS:{name}" for name in (*own, "kubernetes.default.svc.cluster.local", *names)]
    alternatives += [f"IP:{address}" for address in addresses]
    request, extensions = layout.key(who).with_suffix(".csr"), layout.key(who).with_suffix(".ext")
    _new_key(layout, who)
    run("openssl", "req", "-new", "-key", layout.key(who), "-out", request, "-subj", subject)
    extensions.write_text(f"subjectAltName={','.join(alternatives)}\n")
    run(
        *("openssl", "x509", "-req", "-in", request, "-out", layout.certificate(who), "-days", _DAYS),
        *("-CA", layout.certificate("ca"), "-CAkey", layout.key("ca"), "-CAcreateserial", "-extfile", extensions),
    )


def _new_key(layout: Layout, who: str) -> None:
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", layout.key(who))


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
