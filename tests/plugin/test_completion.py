"""What may come next: by kubectl's protocol, and in a real shell."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import kubectl_shoal
from tests.plugin.plugin import Plugin
from tests.plugin.worlds import World

PROGRAM = Path(__file__).resolve().parents[2] / "kubectl-plugin" / "kubectl_complete-shoal"


def offered(plugin: Plugin, *words: str) -> list[str]:
    """Without descriptions and the directive."""
    *found, directive = plugin.good("__complete", *words).out.splitlines()
    assert re.fullmatch(r":\d", directive)
    return [line.partition("\t")[0] for line in found]


def test_commands_and_options(plugin: Plugin) -> None:
    assert offered(plugin, "") == sorted(kubectl_shoal.COMMANDS)
    assert offered(plugin, "d") == ["datasets", "doctor", "drain"]
    assert offered(plugin, "drain", "--c") == ["--cancel", "--context"]
    assert offered(plugin, "status", "-o", "") == ["json", "table", "yaml"]
    assert offered(plugin, "completion", "") == ["bash", "fish", "zsh"]
    assert offered(plugin, "grant", "") == ["dataset", "use"]
    assert offered(plugin, "nonsense", "") == []


def test_names_from_the_cluster(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_nodes(f"{world.pool}-a")
    world.make_dataset("images")
    assert offered(plugin, "-n", world.team, "datasets", "") == ["images"]
    assert offered(plugin, "-n", world.team, "explain", "sh") == ["shoal://images/"]
    assert offered(plugin, "status", world.pool[:-1]) == [world.pool]
    assert offered(plugin, "drain", f"{world.pool}-") == [f"{world.pool}-a"]
    assert offered(plugin, "status", "-n", world.team) == [world.team]


def test_a_cluster_that_does_not_answer_offers_nothing(plugin: Plugin) -> None:
    assert offered(plugin, "--kubeconfig", "/nonexistent", "status", "") == []


def test_kubectl_completes_through_the_program(plugin: Plugin, tmp_path: Path) -> None:
    """`kubectl __complete shoal d` asks kubectl_complete-shoal on the PATH."""
    shutil.copy(PROGRAM, tmp_path)
    environment = plugin.environment
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    done = subprocess.run(
        [plugin.cluster.kubectl.program, "__complete", "shoal", "d"], env=environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert [line.split("\t")[0] for line in done.stdout.splitlines()][:3] == ["datasets", "doctor", "drain"]
    assert plugin.good("completion", "--kubectl").out == PROGRAM.read_text()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_sound(plugin: Plugin, shell: str) -> None:
    script = plugin.good("completion", shell).out
    if shutil.which(shell) is None:
        assert "__complete" in script  # no such shell here to ask
        return
    subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_bash_completes(plugin: Plugin) -> None:
    program = """
        source <(kubectl-shoal completion bash)
        COMP_WORDS=(kubectl-shoal sta) COMP_CWORD=1
        _kubectl_shoal 2>/dev/null
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", program], env=plugin.environment, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stdout.strip() == "status"
