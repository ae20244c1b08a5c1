"""What the chart renders, kept for the eye: a change of a template shows as a change of these files.

After a change that is meant: `.venv/bin/python -m tests.chart.golden`, and look at the difference. Two things are left
out: the custom resource definitions, which are those of crds/, and certificates, which are new each time.
"""

from __future__ import annotations

import re

from tests.chart.helm import GOLDEN, VALUES, Helm

SETS = sorted(path.stem for path in VALUES.glob("*.yaml"))

_CERTIFICATE = re.compile(r"^( +(?:ca\.crt|tls\.crt|tls\.key|caBundle): )\S+$", re.MULTILINE)


def current(values: str) -> str:
    """As the chart renders it now."""
    text = _CERTIFICATE.sub(r"\1MADE-ANEW", Helm().render("--values", VALUES / f"{values}.yaml"))
    documents: list[str] = []
    for document in re.split(r"^---\n", text, flags=re.MULTILINE):
        source = document.partition("\n")[0]
        if "kind: CustomResourceDefinition\n" in document:
            documents.append(f"{source}\n# (as in crds/)\n")
        elif document.strip():
            documents.append(re.sub(r"\n{2,}", "\n", document.strip() + "\n"))
    return "---\n".join(documents)


def kept(values: str) -> str:
    path = GOLDEN / f"{values}.yaml"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def renew() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for values in SETS:
        (GOLDEN / f"{values}.yaml").write_text(current(values), encoding="utf-8")


if __name__ == "__main__":
    renew()
