"""A real S3 server for the tests: versitygw on a directory, on loopback, with an account of every request.

`tools/versitygw` builds the binary once per machine. `start` runs it in a directory of its own on a free port, waits
until it accepts connections (or says why it did not), and ends it by its process id. Buckets are directories below
`data`. The server writes one access-log line per request before it answers, so `gets("bucket", "key")` is exact once
the reply has arrived; tests count origin reads with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import obstore
from obstore.store import S3Store

REPOSITORY = Path(__file__).resolve().parents[2]
ACCESS_KEY = "shoal-test"
SECRET_KEY = "shoal-test-secret"  # guards nothing: the server listens on loopback for one test run
REGION = "us-east-1"
START_TIMEOUT_S = 20.0

_LOG_LINE = re.compile(
    r"^\S+ (?P<bucket>\S+) \[[^]]*\] \S+ \S+ \S+ s3_(?P<operation>\w+) (?P<key>.*) /\S* (?P<status>\d{3}) "
)


class Unavailable(Exception):
    """The server cannot run on this machine; the text says why."""


class Request(NamedTuple):
    operation: str
    bucket: str
    key: str
    status: int


class S3Server:
    """The running server, and the small set of things that tests do behind the cache's back."""

    def __init__(self, endpoint: str, data: Path, access_log: Path, process_id: int) -> None:
        self.endpoint = endpoint
        self.access_key = ACCESS_KEY
        self.secret_key = SECRET_KEY
        self.region = REGION
        self.process_id = process_id
        self._data = data
        self._access_log = access_log

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it: obstore, boto and s3fs all read these."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    @property
    def options(self) -> dict[str, str]:
        """The same as options of one origin in a node's configuration."""
        return {
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
            "region": REGION,
            "endpoint": self.endpoint,
            "allow_http": "true",
        }

    def store(self, bucket: str, *, secret_key: str = SECRET_KEY) -> S3Store:
        """An obstore store of `bucket`, past the cache."""
        return S3Store(
            bucket,
            endpoint=self.endpoint,
            access_key_id=ACCESS_KEY,
            secret_access_key=secret_key,
            region=REGION,
            client_options={"allow_http": True},
        )

    def make_bucket(self, bucket: str) -> str:
        """Makes `bucket` if it is missing; returns its URL."""
        (self._data / bucket).mkdir(exist_ok=True)
        return f"s3://{bucket}"

    def put(self, bucket: str, key: str, data: bytes) -> str:
        """Stores an object (the bucket is made if missing); returns its URL."""
        self.make_bucket(bucket)
        obstore.put(self.store(bucket), key, data)
        return f"s3://{bucket}/{key}"

    def delete(self, bucket: str, key: str) -> None:
        obstore.delete(self.store(bucket), key)

    def requests(self) -> list[Request]:
        """Every request since the start, in the order in which they were answered."""
        found: list[Request] = []
        for line in self._access_log.read_text(errors="surrogateescape").splitlines():
            match = _LOG_LINE.match(line)
            if match:
                found.append(Request(match["operation"], match["bucket"], match["key"], int(match["status"])))
        return found

    def count(self, operation: str, bucket: str, key: str | None = None) -> int:
        """How many requests of one kind ("GetObject", "HeadObject", "ListObjectsV2") a bucket or one key has had."""
        return sum(
            request.operation == operation and request.bucket == bucket and key in (None, request.key)
            for request in self.requests()
        )

    def gets(self, bucket: str, key: str | None = None) -> int:
        return self.count("GetObject", bucket, key)


def tools_cache(environment: Mapping[str, str]) -> Path:
    """Where tools/versitygw keeps the binary under this environment."""
    cache = environment.get("XDG_CACHE_HOME") or str(Path(environment["HOME"]) / ".cache")
    return Path(environment.get("SHOAL_TOOLS_CACHE") or Path(cache) / "shoal-tools")


def binary() -> str:
    """Path of the built server; builds it where it is missing. Raises Unavailable where that cannot be done."""
    done = subprocess.run([REPOSITORY / "tools" / "versitygw"], capture_output=True, text=True, check=False)
    if done.returncode == 3:
        raise Unavailable("no Go toolchain on this machine to build the S3 server with")
    if done.returncode != 0:
        raise RuntimeError(f"tools/versitygw failed: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


@contextlib.contextmanager
def start(directory: Path, host: str = "127.0.0.1") -> Iterator[S3Server]:
    """Runs the server below `directory` for as long as the context lasts; `host`: an address of this machine."""
    program = binary()
    data, sidecar, access_log = directory / "data", directory / "sidecar", directory / "access.log"
    data.mkdir()
    sidecar.mkdir()
    port = _free_port(host)
    environment = {**os.environ, "ROOT_ACCESS_KEY_ID": ACCESS_KEY, "ROOT_SECRET_ACCESS_KEY": SECRET_KEY}
    with (directory / "output.log").open("wb") as output:
        process = subprocess.Popen(
            # Metadata in a sidecar directory: extended attributes are missing on some test file systems.
            [
                *(program, "--port", f"{host}:{port}", "--keep-alive", "--quiet", "--access-log", access_log),
                *("posix", "--sidecar", sidecar, data),
            ],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_it_answers(process, (host, port), directory / "output.log")
        yield S3Server(f"http://{host}:{port}", data, access_log, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


def _wait_until_it_answers(process: subprocess.Popen[bytes], address: tuple[str, int], output: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(address, timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server did not start: {output.read_text()[-2000:]}") from None
            time.sleep(0.02)  # a process outside ours tells of its readiness in no other way
