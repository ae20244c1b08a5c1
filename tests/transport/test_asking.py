"""What the answers to a gather's requests mean."""

import pytest

from shoal_core import frame, verbs, view
from shoal_core.errors import NodeGone, ObjectChanged, ShoalError, to_wire
from shoal_core.gather import ABSENT, FINAL, Ask
from shoal_core.verbs import get
from shoal_transport import asking
from shoal_transport.asking import Item

NODE = view.Node("n", ("tcp:n:1",), 1)


@pytest.mark.parametrize(("is_wanted", "kept"), [(True, NodeGone), (False, ObjectChanged)])
@pytest.mark.parametrize("answer", [get.Bypass("no room"), get.Failed(*to_wire(NodeGone("leaving")))])
def test_the_answer_that_ended_a_block_is_the_last_word(
    answer: get.Answer, is_wanted: bool, kept: type[ShoalError]
) -> None:
    """Of two nodes that were asked the second one's excuse is no reason of the read's."""
    item = Item(bytes(16), bytes(16), None, 0, 0, 10, None)
    item.error = ObjectChanged("it is another version")
    body = verbs.encode(get.Reply([answer]))
    header = frame.parse_header(frame.encode(get.KIND | frame.REPLY, 1, body))
    found = asking.outcome(
        Ask(1, NODE, [0], False), [item], lambda _: is_wanted, None, (header, body), 0.0  # type: ignore[arg-type]
    )  # fmt: skip
    assert found.results == [ABSENT]
    assert type(item.error) is kept


def test_a_final_error_is_kept() -> None:
    item = Item(bytes(16), bytes(16), None, 0, 0, 10, None)
    body = verbs.encode(get.Reply([get.Failed(*to_wire(ObjectChanged("it is another version")))]))
    header = frame.parse_header(frame.encode(get.KIND | frame.REPLY, 1, body))
    found = asking.outcome(
        Ask(1, NODE, [0], False), [item], lambda _: True, None, (header, body), 0.0  # type: ignore[arg-type]
    )  # fmt: skip
    assert found.results == [FINAL] and isinstance(item.error, ObjectChanged)
