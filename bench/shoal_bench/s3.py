"""The S3 server that the tests of a checkout build, for benchmarks that need a real one, beside or far away.

`support` is the module that starts it, or None where it cannot run here, which the report then says. `far` puts the
same server at a distance: each request reaches it so much later.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shoal_bench import places
from shoal_bench.report import Report


def support(report: Report, question: str) -> Any:
    """`tests.support.s3_server`, ready to `start`; None and a skipped question without it."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    try:
        module: Any = importlib.import_module("tests.support.s3_server")
    except ImportError:
        report.skip(question, "the server is built by the tests of a checkout")
        return None
    finally:
        sys.path.pop(0)
    try:
        module.binary()
    except module.Unavailable as error:
        report.skip(question, str(error))
        return None
    return module


@contextlib.contextmanager
def far(options: dict[str, str], delay_s: float) -> Iterator[dict[str, str]]:
    """Options of the same server, `delay_s` away."""
    port = options["endpoint"].rpartition(":")[2]
    with places.peer("far", port, str(delay_s)) as relay:
        yield options | {"endpoint": f"http://127.0.0.1:{relay}"}
