"""What `helm test` runs in a pod: the cluster serves Shoal's kinds, and the operator says that it is ready.

It needs no right of its own: every service account may ask which kinds there are. It tries again for a minute, for what
was installed a moment ago.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request

KINDS = {"CachePool", "Dataset", "Preload"}
ACCOUNT = os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount")
PATIENCE_S = float(os.environ.get("PATIENCE_S", "60"))


def kinds_served() -> str:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    with open(f"{ACCOUNT}/token", encoding="utf-8") as file:
        headers = {"Authorization": f"Bearer {file.read().strip()}"}
    request = urllib.request.Request(f"{server}/apis/shoal.dev/v1alpha1", headers=headers)
    context = ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")
    with urllib.request.urlopen(request, timeout=5, context=context) as answer:
        served = {resource["kind"] for resource in json.load(answer)["resources"]}
    missing = KINDS - served
    if missing:
        raise OSError(f"not served: {', '.join(sorted(missing))}")
    return f"served: {', '.join(sorted(KINDS))}"


def operator_ready() -> str:
    with urllib.request.urlopen(sys.argv[1], timeout=5) as answer:
        return f"operator: {answer.status}"


def main() -> None:
    end = time.monotonic() + PATIENCE_S
    for check in (kinds_served, operator_ready):
        while True:
            try:
                sys.stdout.write(check() + "\n")
                break
            except (OSError, urllib.error.URLError) as error:
                if time.monotonic() > end:
                    sys.exit(f"{check.__name__}: {error}")
                time.sleep(1)


main()
