"""Fixtures and rules for all tests: real servers, a clean environment, and the account of skips."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support import http_origin as http_origin_module
from tests.support import s3_server as s3_server_module
from tests.support import skips
from tests.support.embedded_home import embedded_home
from tests.support.http_origin import HttpOrigin
from tests.support.objects import make_object
from tests.support.running_node import in_process_node, node_process
from tests.support.s3_server import S3Server

__all__ = [
    "embedded_home",
    "in_process_node",
    "make_object",
    "node_process",
]  # fixtures that live beside what they give

# CI tries the same examples on each run, so that a red run can be repeated; a developer's machine goes on looking.
hypothesis.settings.register_profile("developer", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "developer")

_FOREIGN_VARIABLES = ("SHOAL_", "AWS_", "GOOGLE_", "AZURE_", "FSSPEC_")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(skips.Plugin(strict=os.environ.get("CI") == "true"), "shoal-skips")


@pytest.fixture(scope="session", autouse=True)
def clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test sees the developer's credentials, nodes or caches. Yields the folder that stands for the user's cache."""
    kept = dict(os.environ)
    tools_cache = kept.get("SHOAL_TOOLS_CACHE") or str(s3_server_module.tools_cache(kept))
    for name in kept:
        if name.startswith(_FOREIGN_VARIABLES):
            del os.environ[name]
    cache = tmp_path_factory.mktemp("cache")
    os.environ["SHOAL_TOOLS_CACHE"] = tools_cache
    os.environ["XDG_CACHE_HOME"] = str(cache)
    os.environ["XDG_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("run"))
    try:
        yield cache
    finally:
        os.environ.clear()
        os.environ.update(kept)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, one for the whole run: give each test a bucket of its own."""
    try:
        s3_server_module.binary()
    except s3_server_module.Unavailable as error:
        pytest.skip(str(error))
    with s3_server_module.start(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with AWS_* set so that this process and its children reach it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def http_origin() -> Iterator[HttpOrigin]:
    """A real HTTP origin that misbehaves on request; see tests/support/http_origin.py."""
    with http_origin_module.serve() as origin:
        yield origin
