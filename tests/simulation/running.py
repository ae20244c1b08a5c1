"""Running seeds: one with its story, or many in a few processes; a failure names the command that repeats it."""

from __future__ import annotations

import gc
import multiprocessing
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass

from tests.simulation import plan
from tests.simulation.checkers import Failed
from tests.simulation.simulation import Parts, Simulation
from tests.simulation.world import START_NS, S, tell

STORY_LINES = 60


@dataclass
class Outcome:
    """Of one seed."""

    seed: int | str
    digest: str
    seconds: float
    text: str
    failure: str = ""


def play(seed: int | str, parts: Parts | None = None, given: plan.Plan | None = None) -> Outcome:
    """Run one seed to its end or to its failure."""
    return _play(seed, parts, given)[0]


def _play(
    seed: int | str, parts: Parts | None = None, given: plan.Plan | None = None
) -> tuple[Outcome, Simulation | None]:
    began = time.perf_counter()
    chosen = given or (plan.long() if seed == "long" else plan.draw(int(seed)))
    simulation = Simulation(chosen, parts)
    failure = ""
    # Collected before and not while it runs: that would look at everything again and again, for a third of the time.
    gc.collect()
    gc.disable()
    try:
        simulation.run()
    except Exception as error:
        # What a node's own check found is told by the line where it found it.
        text = traceback.format_exc() if error.__cause__ or not isinstance(error, Failed) else str(error)
        story = simulation.world.story(error.keys if isinstance(error, Failed) else [], STORY_LINES)
        failure = "\n".join([*story, text, f"make sim {'LONG=1' if seed == 'long' else f'SEED={seed}'}"])
    finally:
        gc.enable()
        simulation.world.end()
    outcome = Outcome(seed, simulation.world.digest, time.perf_counter() - began, _summary(simulation), failure)
    return outcome, simulation


def _summary(simulation: Simulation) -> str:
    plan, watch, world = simulation.plan, simulation.watch, simulation.world
    return (
        f"{plan.node_count} nodes, {plan.client_count} clients, "
        f"{(world.now_ns - START_NS) / S:.0f} s, {world.steps} steps, {watch.reads} reads "
        f"{dict(watch.sources)} {dict(watch.errors)}, origin {sum(simulation.origin.reads.values())} of "
        f"{len(simulation.origin.reads)} blocks, {'roomy' if plan.is_roomy else 'tight'}: "
        f"{', '.join(plan.faults) or 'calm'}"
    )


def one(seed: int | str, trace: bool) -> int:
    """For a person."""
    outcome, simulation = _play(seed)
    if trace and simulation is not None:
        for note in simulation.world._notes:
            print(tell(note))
    print(f"seed {seed}: {outcome.text}\n{outcome.digest}, {outcome.seconds:.2f} s")
    if outcome.failure:
        print(outcome.failure)
    return int(bool(outcome.failure))


def many(seeds: Iterable[int], jobs: int) -> int:
    """One line each; the failures last."""
    failed: list[Outcome] = []
    began, count = time.perf_counter(), 0
    for outcome in outcomes(seeds, jobs):
        count += 1
        print(f"seed {outcome.seed}: {'FAILED' if outcome.failure else 'ok'} {outcome.seconds:.2f} s, {outcome.text}")
        if outcome.failure:
            failed.append(outcome)
    print(f"{count} seeds, {len(failed)} failed, {time.perf_counter() - began:.0f} s")
    for outcome in failed:
        print(f"\n--- seed {outcome.seed}\n{outcome.failure}")
    return int(bool(failed))


def outcomes(seeds: Iterable[int], jobs: int) -> Iterable[Outcome]:
    """In any order."""
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(play, seeds)
