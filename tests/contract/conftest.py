"""The doors, one after the other, for the tests of what all of them promise."""

from collections.abc import Iterator

import pytest

from tests.contract import doors
from tests.contract.doors import Door


@pytest.fixture(params=doors.NAMES)
def door(request: pytest.FixtureRequest) -> Iterator[Door]:
    with doors.open_door(request.param) as opened:
        yield opened
