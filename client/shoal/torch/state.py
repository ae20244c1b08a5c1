"""What a loader's state is, and whether a state that is loaded belongs to this loader.

The state is {version, digest, seed, epoch, position}: five small values, equal on every rank, so a distributed
checkpoint that keeps one rank's value keeps it all. `digest` reads like 'dataset=1f2e items=1797 shuffle=full': all
that decides which item has which position, so that a state of another stream is an error that names the difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shoal_core.errors import BadRequest

VERSION = 1

_NUMBERS = ("version", "seed", "epoch", "position")


@dataclass(frozen=True, slots=True)
class State:
    """Where the stream goes on: at `position` of `epoch`."""

    digest: str
    seed: int
    epoch: int
    position: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "digest": self.digest,
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
        }


def describe(**parts: Any) -> str:
    """The digest made of these."""
    return " ".join(f"{name}={str(value).replace(' ', '')}" for name, value in parts.items())


def check(found: Mapping[str, Any], digest: str, seed: int | None, count: int | None) -> State:
    """The state that was saved. BadRequest names what is missing, malformed or of another stream.

    `seed` is this loader's where one was asked for, else None: then the saved one goes on. `count` bounds the position.
    """
    for name in ("version", "digest", "seed", "epoch", "position"):
        if name not in found:
            raise BadRequest(f"state_dict: {name} is missing")
        value = found[name]
        if name in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise BadRequest(f"state_dict: {name}={value!r} is not a count")
    if found["version"] != VERSION:
        raise BadRequest(f"state_dict: version={found['version']}; this loader reads {VERSION}")
    _check_digest(str(found["digest"]), digest)
    if seed is not None and found["seed"] != seed:
        raise BadRequest(f"seed={seed} here, but seed={found['seed']} in the state: another order")
    if count is not None and found["position"] > count:
        raise BadRequest(f"state_dict: position={found['position']} is beyond the {count} items of an epoch")
    return State(digest, found["seed"], found["epoch"], found["position"])


def _check_digest(saved: str, own: str) -> None:
    if saved == own:
        return
    before, now = _parts(saved), _parts(own)
    different = [name for name in (*now, *before) if before.get(name) != now.get(name)]
    name = different[0] if different else "digest"
    raise BadRequest(
        f"{name}: {now.get(name, 'none')} here, {before.get(name, 'none')} in the state; "
        "a position means nothing in another stream"
    )


def _parts(digest: str) -> dict[str, str]:
    return {name: value for name, _, value in (part.partition("=") for part in digest.split(" "))}
