"""What several tests of nodes need: a real API server, and nodes that follow a pool's state in it."""

from tests.support.kubernetes import control_plane
from tests.support.pools import make_pool

__all__ = ["control_plane", "make_pool"]
