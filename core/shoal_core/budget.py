"""How much may be asked of an origin at once by one reader, so that an outage of the cache is no stampede.

A gate lets `most` requests through at a time. An origin that refuses (503, no answer) halves what it lets through, down
to one, and closes it for a moment that doubles with each further refusal and is jittered, so that a thousand readers do
not come back together; each answer opens it by a fraction of one again, so that about as many answers as are let
through open it by one. Pure: time and chance come from outside.
"""

from shoal_core.routing import Chance

PAUSE_NS_FIRST = 100_000_000
PAUSE_NS_MAX = 5_000_000_000


class Gate:
    """For one origin. Each `take` that gave True is followed by one `ended`."""

    def __init__(self, most: int, chance: Chance) -> None:
        self.most = most
        self.allowed = float(most)
        """How many may be under way: its whole part, at least 1."""
        self.running = 0
        self._chance = chance
        self._pause_ns = 0
        self._closed_until_ns = 0

    def take(self, now_ns: int) -> bool:
        """Whether one more may go now."""
        if now_ns < self._closed_until_ns or self.running >= max(1, int(self.allowed)):
            return False
        self.running += 1
        return True

    def wait_ns(self, now_ns: int) -> int:
        """How long it certainly stays closed."""
        return max(0, self._closed_until_ns - now_ns)

    def ended(self, refused: bool, now_ns: int) -> None:
        """One is over. `refused`: the origin could or would not answer."""
        self.running -= 1
        if not refused:
            self._pause_ns = 0
            self.allowed = min(float(self.most), self.allowed + 1.0 / max(1.0, self.allowed))
            return
        if now_ns < self._closed_until_ns:
            return  # it was sent before the last refusal was known: they are one
        self.allowed = max(1.0, self.allowed / 2)
        self._pause_ns = min(max(2 * self._pause_ns, PAUSE_NS_FIRST), PAUSE_NS_MAX)
        self._closed_until_ns = now_ns + int(self._pause_ns * (0.5 + self._chance.random() / 2))
