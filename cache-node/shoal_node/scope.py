"""What one reader may do: read the data sets that its identity names, and keep derived objects of its namespace. Pure.

A reader says `shoal://images/...`, or the name that nodes know, `shoal://team-a.images/...`; both are the same object.
Its derived objects get its namespace into their URL, and so fingerprints of their own: namespaces never meet on one,
and what one made another can neither see nor spoil. A fingerprint that was learned elsewhere is no permission: what it
stands for is looked at, every time.

Paths are made safe here, because an origin may follow `..` out of the data set's folder, also in disguise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import unquote

from shoal_core import keys
from shoal_core.errors import Forbidden
from shoal_node.objects import ObjectRecord
from shoal_node.spaces import DEFAULT_SPACE, DERIVED_SPACE, Space

SCHEME = "shoal://"

_IGNORED = str.maketrans("", "", "\t\r\n")
"""What a parser of web URLs leaves out."""


class OutOfScope(Forbidden):
    """It is there, perhaps, but not for this reader. The text says what is."""


class Scope:
    """One identity. Never changed: who may read something else has another."""

    def __init__(self, who: str, namespace: str, datasets: Mapping[str, str], shares_memory: bool = False) -> None:
        self.who = who
        self.namespace = namespace
        self.shares_memory = shares_memory
        """Whether it may map segments, where its door can pass them."""
        self._datasets = {own: known for own, known in datasets.items() if known != DEFAULT_SPACE}
        self._known = frozenset(self._datasets.values())
        self._derived = f"{keys.DERIVED}({namespace})"

    def refusal(self, what: str) -> OutOfScope:
        """The error that says what may be done instead."""
        listed = ", ".join(f"{SCHEME}{own}/..." for own in sorted(self._datasets)) or "no data set"
        return OutOfScope(f"{what}: not for {self.who}, which may read {listed}")

    def translated(self, url: str) -> str:
        """The URL as it is for who may read everything."""
        if url.startswith(keys.DERIVED):
            return self._derived + url.removeprefix(keys.DERIVED)
        if not url.startswith(SCHEME):
            raise self.refusal(f"{url}: read by its URL at the origin")
        name, slash, path = url.removeprefix(SCHEME).partition("/")
        known = self._datasets.get(name, name)
        if known not in self._known:
            raise self.refusal(url)
        if _climbs(path):
            raise OutOfScope(f"{url}: '..' in the path could lead out of the data set")
        return f"{SCHEME}{known}{slash}{path}"

    def own_name(self, space: str) -> str | None:
        """What this reader calls the space; None: it may not read it."""
        return next((own for own, known in self._datasets.items() if known == space), None)

    def touches(self, space: str) -> bool:
        """Whether any block of the space of this name may be this reader's."""
        return space in self._known or space == DERIVED_SPACE

    def is_own_derived(self, space: str, url: str) -> bool:
        """Whether it is a derived object of this namespace."""
        return space == DERIVED_SPACE and url.startswith(self._derived)

    def check(self, space: str, url: str) -> None:
        """Forbidden, unless this reader may read what lies in that space under that URL at the origin."""
        if space not in self._known and not self.is_own_derived(space, url):
            raise self.refusal("an object of another data set or namespace")

    def check_records(self, spaces: Sequence[Space], records: Sequence[ObjectRecord]) -> None:
        """The same of objects."""
        for record in records:
            self.check(spaces[record.space].name, record.url)


def _climbs(path: str) -> bool:
    """Whether any origin might read the path as one that goes up."""
    plain = (text.translate(_IGNORED).replace("\\", "/") for text in (path, unquote(path)))
    return any(".." in text.split("/") for text in plain)
