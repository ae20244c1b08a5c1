"""Can the node read an origin: one HEAD, else the first page of a listing, through the node as a reader would."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from shoal.cli.doctor.check import Check
from shoal_core import units
from shoal_core.errors import DeadlineExceeded, Forbidden, NotFound, OriginError, ShoalError

if TYPE_CHECKING:
    from shoal.client import Client

DEADLINE_S = 20.0


def check(client: Client, url: str) -> Check:
    name = "origin"
    started = time.perf_counter()
    try:
        try:
            size = client.info(url, deadline_s=DEADLINE_S).size
        except NotFound:
            found = client.list(url)
            took = units.duration(time.perf_counter() - started)
            if not found:
                return Check(name, "fail", f"{url}: answers, but has no such object and nothing below it", "check it")
            return Check(name, "pass", f"{url}: {units.number(len(found))} objects, listed in {took}")
    except Forbidden as error:
        return Check(name, "fail", str(error), "check the credentials the node was started with, and their policy")
    except (OriginError, DeadlineExceeded) as error:
        return Check(name, "fail", str(error), "check credentials, endpoint, name resolution, proxy, firewall")
    except ShoalError as error:
        return Check(name, "fail", str(error), "check the URL")
    took = units.duration(time.perf_counter() - started)
    return Check(name, "pass", f"{url}: {units.size(size)}, asked in {took}")
