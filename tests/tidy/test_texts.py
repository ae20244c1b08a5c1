"""Tracked text names no package registry and no machine's own path; the locks hold neither, and fit the project."""

import re
import tomllib

from tests.tidy import tracked

REGISTRIES = re.compile(
    r"pypi[.]org|pythonhosted[.]org|crates[.]io|npmjs[.](com|org)|proxy[.]golang|deb[.]debian|repo1?[.]maven"
)
MACHINE_PATHS = re.compile(r"/work[/](main|shared)|(?<![\w.])/root[/]|/tmp[/]plan|[.]pyenv[/]|/opt[/]wheels")
HOST_LOCKS = [name for name in tracked.files() if re.fullmatch(r"tests/hosts/[a-z]+/requirements[.]lock", name)]
BINARY = (".png", ".jpg", ".gif", ".ico", ".npz", ".parquet", ".bin")


def _hits(pattern: re.Pattern[str]) -> list[str]:
    found: list[str] = []
    for name in tracked.files():
        if name.endswith(BINARY):
            continue
        for number, line in enumerate(tracked.text(name).splitlines(), 1):
            if pattern.search(line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    return found


def test_no_registry_host() -> None:
    assert _hits(REGISTRIES) == []


def test_no_path_of_one_machine() -> None:
    assert _hits(MACHINE_PATHS) == []


def _pins(lock: str) -> set[str]:
    return {line.rstrip(" \\") for line in tracked.text(lock).splitlines() if re.match(r"[A-Za-z0-9]", line)}


def test_locks_hold_versions_and_hashes_and_no_address() -> None:
    for lock in ("requirements.lock", "demo.lock", *HOST_LOCKS):
        other = [
            line
            for line in tracked.text(lock).splitlines()
            if line and not re.fullmatch(r"[A-Za-z0-9_.\[\]-]+==[^:@]+|    --hash=sha256:[0-9a-f]{64}( \\)?", line)
        ]
        assert other == []


def test_the_demo_lock_is_a_part_of_the_whole_one() -> None:
    assert _pins("demo.lock") - _pins("requirements.lock") == set()


def test_the_lock_has_every_dependency_of_the_project() -> None:
    project = tomllib.loads(tracked.text("pyproject.toml"))
    named: list[str] = list(project["project"]["dependencies"])
    for group in (*project["project"]["optional-dependencies"].values(), *project["dependency-groups"].values()):
        named += [item for item in group if isinstance(item, str)]
    locked = {pin.split("==")[0] for pin in _pins("requirements.lock")}
    assert {re.split(r"[\[<>=~!; ]", name)[0] for name in named} - locked == set()


def test_each_host_lock_has_what_the_project_needs_there_and_its_torch() -> None:
    project = tomllib.loads(tracked.text("pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    needed = {
        re.split(r"[\[<>=~!; ]", name)[0]
        for name in (*project["dependencies"], *extras["node"], *extras["fsspec"], *extras["torch"])
    }
    torch = {pin for pin in _pins("requirements.lock") if pin.startswith("torch==")}
    assert HOST_LOCKS
    for lock in HOST_LOCKS:
        assert needed - {pin.split("==")[0] for pin in _pins(lock)} == set(), lock
        assert torch - _pins(lock) == set(), lock


def test_the_changelog_has_a_place_for_what_is_new() -> None:
    assert re.search(r"^## Unreleased$", tracked.text("CHANGELOG.md"), re.MULTILINE)
