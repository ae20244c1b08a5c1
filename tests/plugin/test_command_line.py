"""Wrong usage, what is not there, and how long a start takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kubectl_shoal
from tests.plugin.plugin import Plugin
from tests.plugin.worlds import World

START_S_MAX = 0.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "a command is needed"),
        (("nonsense",), "invalid choice: 'nonsense'"),
        (("status", "--nonsense"), "unrecognized arguments: --nonsense"),
        (("status", "-o", "xml"), "invalid choice: 'xml'"),
        (("datasets", "--watch", "--interval", "0"), "'0' is not a number of seconds"),
        (("explain", "images/a.jpg"), "images/a.jpg: not a URL"),
        (("explain", "shoal://Images/a.jpg"), "Images names no data set"),
        (("grant", "use", "images", "--to", "nobody"), "--to nobody: not NAMESPACE/NAME"),
        (("grant", "dataset", "team/images"), "team/images: not the name of a Dataset"),
        (("warm", "images", "--ttl", "soon"), "'soon' is not a number of seconds"),
    ],
)
def test_wrong_usage_is_code_2_and_says_which_word(plugin: Plugin, words: tuple[str, ...], said: str) -> None:
    done = plugin.run(*words)
    assert done.code == 2 and said in done.errors and done.out == "", done
    assert "Traceback" not in done.errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("status", "none"), "CachePool none: there is none; there are: "),
        (("datasets", "none"), "Dataset default/none: there is none; in this namespace there are: none"),
        (("explain", "shoal://none/a"), "Dataset default/none: there is none"),
        (("explain", "shoal://team-x.none/a"), "Dataset team-x/none: there is none"),
        (("warm", "none"), "Dataset default/none: there is none"),
        (("drain", "no-such-node", "--pool", "none"), "CachePool none: there is none"),
        (("top", "none"), "no node of pool none is ready"),
        (("--context", "none", "status"), 'context "none" does not exist'),
    ],
)
def test_what_is_not_there_is_code_1_and_one_line(plugin: Plugin, words: tuple[str, ...], said: str) -> None:
    done = plugin.run(*words)
    assert done.code == 1 and said in done.errors and done.out == "", done
    assert done.errors.startswith("kubectl shoal: ") and done.errors.count("\n") == 1


def test_a_cluster_that_does_not_answer(plugin: Plugin, tmp_path: Path) -> None:
    nowhere = tmp_path / "kubeconfig"
    nowhere.write_text(
        "apiVersion: v1\nkind: Config\ncurrent-context: a\n"
        "clusters: [{name: a, cluster: {server: 'https://127.0.0.1:9'}}]\n"
        "contexts: [{name: a, context: {cluster: a, user: a}}]\nusers: [{name: a, user: {token: x}}]\n"
    )
    done = plugin.run("--kubeconfig", nowhere, "status")
    assert done.code == 1 and "127.0.0.1:9" in done.errors and done.errors.count("\n") == 1


def test_without_kubectl(plugin: Plugin) -> None:
    done = subprocess.run(
        plugin.words("status"), env={**os.environ, "PATH": "/nowhere"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.startswith("kubectl shoal: kubectl: not found on PATH")


def test_a_pool_without_pods(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_dataset("images")
    done = plugin.run("explain", f"shoal://{world.team}.images/a.jpg")
    assert done.code == 1 and f"CachePool {world.pool}: it has no pods" in done.errors
    done = plugin.run("explain", f"shoal://{world.team}.images/a.jpg", "--pool", "other")
    assert done.code == 2 and f"--pool other: Dataset {world.team}/images is in pool {world.pool}" in done.errors


def test_options_stand_before_or_after_the_command(plugin: Plugin, world: World) -> None:
    world.make_pool()
    world.make_dataset("images")
    before = plugin.good("-n", world.team, "-o", "json", "datasets")
    assert before == plugin.good("datasets", "-n", world.team, "-o", "json")


def test_kubectl_runs_it_as_a_plugin(plugin: Plugin) -> None:
    done = subprocess.run(
        [plugin.cluster.kubectl.program, "shoal", "status", "none"], env=plugin.environment, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "CachePool none" in done.stderr


def test_every_command_has_help(plugin: Plugin) -> None:
    for command in kubectl_shoal.COMMANDS:
        assert plugin.good(command, "--help").out.startswith(f"usage: kubectl shoal {command}")


@pytest.mark.slow
def test_it_starts_in_less_than_half_a_second(plugin: Plugin) -> None:
    """Processor time, because other tests may have the processors: without kubectl's own."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "kubectl_shoal", "--help"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        taken.append((usage.ru_utime + usage.ru_stime, time.perf_counter() - began))
    assert min(taken)[0] < START_S_MAX, taken
