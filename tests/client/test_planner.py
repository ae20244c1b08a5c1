"""The planner by itself: what it says of answers, and what it makes of a node that is late, or of a closed client."""

from __future__ import annotations

import pytest

import shoal
from shoal import errors
from shoal.planning import Planner
from shoal_core import limits
from shoal_core.verbs import plan
from tests.support import waiting
from tests.support.objects import MakeObject
from tests.support.running_node import MakeInProcess, MakeProcess, NodeProcess
from tests.support.watched_door import WatchedDoor

STREAM = b"stream-of-a-test"


def test_no_answer_and_nothing_accepted_are_two_things(shared_node: NodeProcess) -> None:
    with shoal.connect(shared_node.address) as client, shoal.connect("unix:/nowhere") as alone:
        answered, silent = Planner(client, STREAM), Planner(alone, STREAM)
        assert answered.send(0, [], 0) == silent.send(0, [], 0) == 0
        assert answered.answered and not silent.answered
        answered.close()


def test_a_stream_whose_first_plan_was_answered_too_late_ends_all_the_same(
    in_process_node: MakeInProcess, make_object: MakeObject
) -> None:
    node = in_process_node({})
    door = WatchedDoor(node.memory)
    url, _ = make_object(100)
    with shoal.connect(door) as client:
        planner, info = Planner(client, STREAM), client.info(url)
        held = door.hold(plan)
        assert planner.send(0, [(info, 0, 1, 5)], 0, deadline_s=0.1) == 0
        held.await_arrival()
        assert client._session.attachment is not None
        name = client._session.attachment.identity, STREAM
        with node.node.step() as state:
            assert state.streams.spaces(name), "the node did hear of it"
        planner.close()
        held.let_go()
        with node.node.step() as state:
            assert not state.streams.spaces(name)


def test_any_number_of_steps_is_reported(in_process_node: MakeInProcess) -> None:
    """Those of a night without the node are too many for one plan, and must not spoil every later one."""
    node = in_process_node({})
    with shoal.connect(node.memory) as client:
        planner = Planner(client, STREAM)
        planner.send(0, [], 0, steps=int(limits.STREAM_WAIT_S_MAX) + 1)
        assert planner.answered and node.node.counters.loader_steps == limits.STREAM_WAIT_S_MAX


def test_a_closed_client_is_an_error_of_the_plan_but_not_of_the_end(address: str) -> None:
    client = shoal.connect(address)
    planner = Planner(client, STREAM)
    planner.send(0, [], 0)
    client.close()
    with pytest.raises(errors.Closed):
        planner.send(1, [], 0)
    planner.close()


def test_who_answers_after_a_restart_is_told_apart(node_process: MakeProcess) -> None:
    node = node_process({})
    with shoal.connect(node.address) as client:
        planner = Planner(client, STREAM)
        planner.send(0, [], 0)
        planner.send(1, [], 0)
        before = planner.connection
        node.kill()
        node.start()

        def answered() -> bool:
            planner.send(2, [], 0)
            return planner.answered

        waiting.until(answered, "the client has found the node again")
        assert before is not None and planner.connection not in (None, before)
