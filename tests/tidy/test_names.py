"""A stranger finds a thing by its name, and knows from a module's first lines what it promises."""

import ast
from pathlib import PurePosixPath

from tests.tidy import tracked

SAYS_NOTHING = {"utils", "util", "common", "helpers", "helper", "manager", "misc", "shared"}


def test_no_name_that_says_nothing() -> None:
    parts = ((name, part) for name in tracked.python_files() for part in PurePosixPath(name).with_suffix("").parts)
    assert [name for name, part in parts if part in SAYS_NOTHING] == []


def test_every_module_begins_with_its_docstring() -> None:
    missing = [name for name in tracked.python_files() if not (ast.get_docstring(ast.parse(tracked.text(name))) or "")]
    assert missing == []


def test_only_the_packages_we_ship_lie_in_the_rooms() -> None:
    packages = {tuple(PurePosixPath(name).parts[:2]) for name in tracked.python_files()}
    expected = {
        ("core", "shoal_core"),
        ("transport", "shoal_transport"),
        ("client", "shoal"),
        ("cache-node", "shoal_node"),
        ("bench", "shoal_bench"),
    }
    assert {package for package in packages if package[0] in tracked.ROOMS} == expected
