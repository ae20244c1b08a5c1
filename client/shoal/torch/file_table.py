"""The names, versions and labels of a data set's files in a few flat buffers.

Ten million files as Python objects would cost gigabytes, again in every spawned worker, and in forked ones as soon as
their reference counts move. Here a file costs the bytes of its name and its etag, and 44 more: texts lie end to end in
one buffer, found by an array of ends. Files stand in the order of their names' bytes (the order in which S3 lists), so
the same files have the same numbers whatever order an origin lists in. Knows neither torch nor the client.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable
from typing import NamedTuple

from shoal_core.keys import FINGERPRINT_BYTES

NO_LABEL = -1


class File(NamedTuple):
    """One row. Without a fingerprint, the version is whatever the file has when it is read."""

    name: str
    """Its path below the data set's URL."""
    size: int = 0
    etag: str = ""
    fingerprint: bytes = bytes(FINGERPRINT_BYTES)


class _Texts:
    """A list of short byte strings, end to end."""

    __slots__ = ("_bytes", "_ends")

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("Q")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, number: int) -> bytes:
        return bytes(self._bytes[self._ends[number - 1] if number else 0 : self._ends[number]])

    def text(self, number: int) -> str:
        ends = self._ends
        return self._bytes[ends[number - 1] if number else 0 : ends[number]].decode("utf-8", "surrogatepass")

    def append(self, text: bytes) -> None:
        self._bytes += text
        self._ends.append(len(self._bytes))

    def add_to(self, digest: hashlib.blake2b) -> None:
        digest.update(self._ends)
        digest.update(self._bytes)

    def ordered(self, order: Iterable[int]) -> _Texts:
        other = _Texts()
        for number in order:
            other.append(self[number])
        return other


class FileTable:
    """Never changes once it is made; pickles as the buffers it is."""

    __slots__ = ("_etags", "_fingerprints", "_names", "_sizes", "classes", "labels")

    def __init__(self, files: Iterable[File]) -> None:
        self._names, self._etags, self._sizes, self._fingerprints = _Texts(), _Texts(), array("Q"), bytearray()
        in_order, last = True, b""
        for file in files:
            name = _encoded(file.name)
            in_order, last = in_order and last <= name, name
            self._names.append(name)
            self._etags.append(_encoded(file.etag))
            self._sizes.append(file.size)
            self._fingerprints += file.fingerprint
        if not in_order:
            self._sort()
        self.classes, self.labels = self._find_classes()

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, number: int) -> File:
        start = FINGERPRINT_BYTES * number
        fingerprint = bytes(self._fingerprints[start : start + FINGERPRINT_BYTES])
        return File(self._names.text(number), self._sizes[number], self._etags.text(number), fingerprint)

    def name(self, number: int) -> str:
        return self._names.text(number)

    def size(self, number: int) -> int:
        return self._sizes[number]

    def digest(self, *options: str) -> str:
        """32 hexadecimal digits of all names, sizes and versions, and of these texts. Not of fingerprints: those hold
        the node's block size, too, which changes no sample."""
        digest = hashlib.blake2b(digest_size=16)
        texts = _Texts()
        for option in options:
            texts.append(_encoded(option))
        for part in (texts, self._names, self._etags):
            digest.update(len(part).to_bytes(8, "little"))
            part.add_to(digest)
        digest.update(self._sizes)
        return digest.hexdigest()

    def _sort(self) -> None:
        order = sorted(range(len(self)), key=self._names.__getitem__)
        self._fingerprints = bytearray().join(self[number].fingerprint for number in order)
        self._sizes = array("Q", (self._sizes[number] for number in order))
        self._names, self._etags = self._names.ordered(order), self._etags.ordered(order)

    def _find_classes(self) -> tuple[tuple[str, ...], array[int]]:
        """Classes are the first folders, in the order of their names; a file outside of any folder has none."""
        numbers: dict[bytes, int] = {}  # in order of appearance
        labels = array("i")
        for number in range(len(self)):
            folder, slash, _ = self._names[number].partition(b"/")
            labels.append(numbers.setdefault(folder, len(numbers)) if slash else NO_LABEL)
        # 'a-b/x' sorts before 'a/x', but 'a' before 'a-b': the order of appearance is not that of the folders' names.
        ordered = sorted(numbers)
        position = {numbers[folder]: label for label, folder in enumerate(ordered)} | {NO_LABEL: NO_LABEL}
        return tuple(map(_decoded, ordered)), array("i", (position[label] for label in labels))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _decoded(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")
