"""Seeds of the simulation: many, the long one, those that found something, and that a seed is always the same."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from shoal_core.verbs import get
from tests.simulation import plan, running, scale
from tests.simulation.plan import Plan
from tests.simulation.simulation import Simulation
from tests.simulation.world import S

IN_CI = os.environ.get("CI") == "true"
SEED_COUNT = 200 if IN_CI else 30
AT_ONCE = 40
WORKERS = 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(1, SEED_COUNT + 1, AT_ONCE))
def test_many_seeds(first: int) -> None:
    seeds = range(first, min(first + AT_ONCE, SEED_COUNT + 1))
    failures = [outcome.failure for outcome in running.outcomes(seeds, WORKERS) if outcome.failure]
    assert not failures, "\n\n".join(failures)


@pytest.mark.timeout(600)
def test_a_long_one() -> None:
    """100 nodes and 1,000 clients, where there is time for it."""
    chosen = plan.long() if IN_CI else dataclasses.replace(plan.long(), node_count=30, client_count=200)
    outcome = running.play("long", None, chosen)
    assert outcome.failure == ""


@pytest.mark.timeout(300)
def test_a_seed_is_always_the_same() -> None:
    """Also in processes whose sets of strings are in another order."""
    command = "from tests.simulation import running; print([running.play(seed).digest for seed in (3, 11, 17)])"
    digests = {
        subprocess.run(
            [sys.executable, "-c", command],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            capture_output=True, text=True, check=True, timeout=250,
        ).stdout
        for hash_seed in ("0", "1", "4242")
    }  # fmt: skip
    assert digests == {f"{[running.play(seed).digest for seed in (3, 11, 17)]}\n"}


def test_seeds_differ() -> None:
    assert running.play(3).digest != running.play(4).digest


def test_a_failure_says_how_to_repeat_it() -> None:
    broken = dataclasses.replace(plan.draw(3), quiet_ns=0, settle_ns=0, replica_count=3)
    failure = running.play(3, None, dataclasses.replace(broken, faults=("kill",))).failure
    assert failure.endswith("make sim SEED=3") and "killed" in failure


# What was found, by what happens


def found(**settings: object) -> str:
    """The failure of a small plan; "" where there is none."""
    given = dataclasses.replace(Plan(seed=1, think_ns=S // 10), **settings)  # type: ignore[arg-type]
    return running.play(given.seed, None, given).failure


@pytest.mark.parametrize("seed", range(1, 5))
def test_a_first_owner_that_lost_its_memory_gets_it_back(seed: int) -> None:
    """Only first owners offered blocks to the other owners, so what a first owner lost nobody offered to it."""
    assert found(seed=seed, faults=("kill",), replica_count=2, node_count=4, client_count=10) == ""


@pytest.mark.parametrize("seed", range(1, 5))
def test_every_node_is_replaced_and_no_block_is_read_again(seed: int) -> None:
    """With two copies: a node asks those who owned a block before, and drains tell the rest."""
    assert found(seed=seed, faults=("rolling",), replica_count=2, node_count=4, client_count=8) == ""


@pytest.mark.parametrize("seed", [16, 19, 23])
def test_views_change_while_fills_wait_for_their_turn(seed: int) -> None:
    """The ways to a block were places in a view, and the view had fewer when they were taken."""
    tight = {"is_roomy": False, "dram_bytes": 704 << 10, "disk_slabs": 8}
    assert found(seed=seed, faults=("join", "slow disk", "changes"), node_count=3, client_count=12, **tight) == ""


@pytest.mark.parametrize(("seed", "faults"), [(3, ("kill", "pause", "slow disk")), (7, ("kill", "power"))])
def test_a_full_node_that_is_offered_more_than_it_can_hold(seed: int, faults: tuple[str, ...]) -> None:
    """What was pulled kept its slots while it waited for more, for as long as it was offered anew."""
    tight = {"is_roomy": False, "dram_bytes": 640 << 10, "disk_slabs": 8, "block_size_bytes": 512}
    sizes = {"node_count": 2, "client_count": 9, "replica_count": 2, "object_blocks": 20}
    assert found(seed=seed, faults=faults, spaces=("default", "brief", "twice", "over"), **tight, **sizes) == ""


@pytest.mark.parametrize("seed", [1, 10])
def test_a_node_that_starts_again_with_more_on_disk_than_its_quota_allows(seed: int) -> None:
    """A quota that was raised while it ran is forgotten with the process; what had come meanwhile stayed."""
    tight = {"is_roomy": False, "dram_bytes": 704 << 10, "disk_slabs": 24, "spaces": ("default", "small")}
    assert found(seed=seed, faults=("kill", "quota"), node_count=2, client_count=12, object_blocks=40, **tight) == ""


@pytest.mark.parametrize("seed", [1, 4, 5, 6, 12])
def test_a_reader_who_joins_a_peer_in_waiting_for_a_bad_disk(seed: int) -> None:
    """A block that was wanted by its key alone had no origin, also for a reader who knew it and came later."""
    tight = {"is_roomy": False, "dram_bytes": 640 << 10, "disk_slabs": 24}
    sizes = {"client_count": 16, "replica_count": 2, "home_fraction": 0.5, "object_blocks": 20, "think_ns": S // 20}
    assert found(seed=seed, faults=("disk errors", "disk flips", "slow disk"), **tight, **sizes) == ""


def test_what_everybody_reads_is_held_by_more_nodes_and_readers_spread() -> None:
    given = Plan(
        seed=1, node_count=6, client_count=20, object_count=1, object_blocks=1, home_fraction=0.0, think_ns=S // 20,
        load_ns=6 * S, zone_count=2,
    )  # fmt: skip
    simulation = Simulation(given)
    simulation.run()
    given_by = {
        node.config.node_name: node.counters.reads["tcp"][get.SOURCE_DRAM] for node in simulation.nodes.values()
    }
    told = [client.name for client in simulation.clients if client.router._hot]
    assert len(told) > 10 and sum(count > 100 for count in given_by.values()) >= 2, (told, given_by)


def test_the_eleventh_node_brings_its_share_and_nothing_else() -> None:
    before = scale.cluster_of(10, 1, 1)
    after = scale.cluster_of(11, 1, 1)
    assert scale.moved(before, after, range(20_000)) <= 12.0
    pulled, ideal = scale.moved_by_a_join()
    assert ideal / 2 < pulled <= 12.0


def test_the_cost_of_scale_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "NODE_COUNTS", (10, 100))
    monkeypatch.setattr(scale, "SAMPLED", {10: 2_000, 100: 500})
    scale.print_table()
    text = capsys.readouterr().out
    assert "view, JSON bytes" in text and "connections of a node to others" in text
