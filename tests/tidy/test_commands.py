"""Every command that the front pages name exists: `make X` in the Makefile, `shoal X` in the command line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy import tracked

PAGES = ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")
MAKEFILE = "Makefile"


def _code(page: str) -> str:
    """What a page shows as code: fenced blocks without their comments, and spans."""
    if not (tracked.REPOSITORY / page).exists():
        return ""
    content = tracked.text(page)
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", content, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", content, flags=re.MULTILINE | re.DOTALL))
    return "\n".join(re.sub(r"#.*", "", line) for line in "\n".join([*blocks, *spans]).splitlines())


def _named(program: str) -> set[str]:
    """First words after `program` at the beginning of a command."""
    pattern = rf"(?:^|[;&|]\s*|\$ )(?:\w+=\S+ )*{program} ([a-z][a-z-]*)"
    return {word for page in PAGES for word in re.findall(pattern, _code(page), re.MULTILINE)}


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", tracked.text(MAKEFILE), re.MULTILINE))
    assert {"demo", "test", "check", "bench"} <= targets
    assert _named("make") - targets == set()


def test_every_make_target_is_phony_and_explained() -> None:
    makefile = tracked.text(MAKEFILE)
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    assert phony == targets
    explained = set(re.findall(r'@echo "make ([a-z-]+)', makefile))
    assert explained == targets - {"help"}


def test_subcommands_exist() -> None:
    named = _named("shoal")
    if not named:
        return
    command = Path(sys.executable).with_name("shoal")
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=False, timeout=30)
    assert shown.returncode == 0, shown.stderr
    assert {name for name in named if not re.search(rf"\b{name}\b", shown.stdout)} == set()


@pytest.mark.parametrize("script", [name for name in tracked.files() if name.startswith(("tools/", ".ci/"))])
def test_scripts_are_executable_and_say_what_they_do(script: str) -> None:
    lines = tracked.text(script).splitlines()
    assert lines[0].startswith("#!")
    assert lines[1].startswith("# ")
    assert (tracked.REPOSITORY / script).stat().st_mode & 0o111
