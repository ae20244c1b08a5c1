"""Every error that Shoal raises, and how each crosses the wire.

A class says who must act: `ConfigError` and `BadRequest` the caller, `NotFound`, `Forbidden`, `ObjectChanged` and
`OriginError` whoever keeps the origin, `NodeGone`, `DeadlineExceeded` and `NoSpace` nobody at once (the client falls
back), `Corrupt`, `ProtocolError` and `InvariantBroken` us. A miss is a value, never an exception. Where Python has a
word for the case, the class is also that (`NotFound` is a `FileNotFoundError`), so that code written for files works.
Each class has one wire code; a code that this version does not know arrives as a plain `ShoalError`.
"""

from __future__ import annotations

_CONTROL = {number: f"\\x{number:02x}" for number in (*range(32), 127)}


class ShoalError(Exception):
    """Base of all. `str(error)` is one line that names the URL, field or file, whatever characters are in its name."""

    code = 1

    message = "given by name, it is printed as it is"
    """torch looks for this name when it raises a worker's error anew in the training process: it then hands the
    worker's traceback over as `message=`, which has many lines."""

    def __init__(self, *arguments: object, message: str | None = None) -> None:
        super().__init__(*(arguments if message is None else (message,)))
        self._lines = message is not None

    def __str__(self) -> str:
        text = super().__str__()
        return text if self._lines else text.translate(_CONTROL)


class ConfigError(ShoalError, ValueError):
    """A configuration file, field or directory cannot be used as given. May go on for lines, to say what to write."""

    code = 2

    def __str__(self) -> str:
        return Exception.__str__(self)


class BadRequest(ShoalError, ValueError):
    """The call itself is wrong: unknown scheme, negative offset, unknown verb."""

    code = 3


class NotFound(ShoalError, FileNotFoundError):
    """The origin has no such object."""

    code = 4


class Forbidden(ShoalError, PermissionError):
    """The origin refused the node's credentials; or the node refuses what its reader may not do."""

    code = 5


class OriginError(ShoalError, OSError):
    """The origin is unreachable, answered 5xx, or sent fewer bytes than it promised."""

    code = 6


class ObjectChanged(ShoalError, OSError):
    """The object's version at the origin is no longer the one that was opened."""

    code = 7


class DeadlineExceeded(ShoalError, TimeoutError):
    """The caller's deadline passed before the answer was there."""

    code = 8


class NodeGone(ShoalError, ConnectionError):
    """The connection to the node ended in the middle of a call."""

    code = 9


class NoSpace(ShoalError, OSError):
    """No slot can be had within quota: everything that could go is leased or pinned."""

    code = 10


class Corrupt(ShoalError, OSError):
    """Bytes did not match their digests. The block was dropped; a retry reads it anew."""

    code = 11


class ProtocolError(ShoalError):
    """A peer sent something that is not a valid frame or body."""

    code = 12


class Closed(ShoalError, ValueError):
    """The object that was used had been closed."""

    code = 13


class UnknownObject(ShoalError):
    """The node does not remember this fingerprint; resolve the URL again. Clients handle it themselves."""

    code = 14


class InvariantBroken(ShoalError, AssertionError):
    """A bug in Shoal. The text carries the recent events of the key concerned."""

    code = 15


class TokenExpired(Forbidden):
    """The token that a connection was opened with has ended: another connection, with a fresh one, is served."""

    code = 16


_BY_CODE: dict[int, type[ShoalError]] = {
    cls.code: cls
    for cls in (
        ShoalError, ConfigError, BadRequest, NotFound, Forbidden, OriginError, ObjectChanged, DeadlineExceeded,
        NodeGone, NoSpace, Corrupt, ProtocolError, Closed, UnknownObject, InvariantBroken, TokenExpired,
    )
}  # fmt: skip


def to_wire(error: BaseException) -> tuple[int, str]:
    """(code, text) of any exception. What is not ours travels as code 1 with its class name in the text."""
    if isinstance(error, ShoalError):
        return error.code, str(error)
    return ShoalError.code, f"{type(error).__name__}: {error}"


def from_wire(code: int, text: str) -> ShoalError:
    """The exception that `to_wire` described."""
    return _BY_CODE.get(code, ShoalError)(text)
