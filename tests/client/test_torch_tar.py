"""Tar headers: every form in which names and sizes are written, and archives that are cut off or damaged."""

from __future__ import annotations

import io
import random
import tarfile
from typing import Any

import pytest

pytest.importorskip("torch")

from shoal import errors
from shoal.torch.formats import tar

LONG = "deep/" * 60 + "file"


def read_of(data: bytes) -> tar.Read:
    def read(offset: int, length: int) -> bytes:
        assert 0 <= offset <= len(data) - length, "reads beyond the archive"
        return data[offset : offset + length]

    return read


def found(data: bytes) -> list[tuple[str, bytes]]:
    """(name, content) of every member."""
    members = tar.members(read_of(data), len(data), "the url")
    return [(member.name, data[member.offset : member.offset + member.size]) for member in members]


def packed(files: dict[str, bytes], form: int, **options: Any) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form, **options) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return made.getvalue()


def checked(header: bytes) -> bytes:
    """The header with its checksum."""
    return header[:148] + b"%06o\0 " % (256 + sum(header[:148] + header[156:])) + header[156:]


FILES = {"a.jpg": b"a" * 700, "x" * 90 + "/" + "y" * 60: b"b" * 512, "empty": b"", "last": b"c"}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_form(form: int) -> None:
    assert found(packed(FILES, form)) == list(FILES.items())


def test_fields_for_all_members_that_follow() -> None:
    assert found(packed(FILES, tarfile.PAX_FORMAT, pax_headers={"comment": "of all"})) == list(FILES.items())


def test_a_size_in_a_pax_header_counts() -> None:
    """As it is written for members of more than 8 GiB, whose own header cannot say it."""
    plain = tarfile.TarInfo("a.jpg")
    record = b"12 size=700\n"
    assert len(record) == 12
    extended = tarfile.TarInfo("header")
    extended.type, extended.size = tarfile.XHDTYPE, len(record)
    following = tarfile.TarInfo("b.jpg")
    following.size = 5
    data = extended.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0") + plain.tobuf(tarfile.USTAR_FORMAT)
    data += b"x" * 700 + bytes(324) + following.tobuf(tarfile.USTAR_FORMAT) + b"hello".ljust(512, b"\0") + bytes(1024)
    assert found(data) == [("a.jpg", b"x" * 700), ("b.jpg", b"hello")]


def test_a_size_in_base_256_counts() -> None:
    info = tarfile.TarInfo("large")
    info.size = 9 << 30
    header = info.tobuf(tarfile.GNU_FORMAT)
    (member,) = tar.members(lambda _, length: header[:length], 512 + (9 << 30), "the url")
    assert member == ("large", 512, 9 << 30)
    with pytest.raises(errors.OriginError, match="'large' at offset 512 ends beyond"):
        list(tar.members(lambda _, length: header[:length], 512 + (9 << 30) - 1, "the url"))


def test_old_archives_without_a_kind_or_a_magic() -> None:
    info = tarfile.TarInfo("folder/old")
    info.size = 3
    header = checked(info.tobuf(tarfile.USTAR_FORMAT)[:156] + bytes(512 - 156))
    folder = checked(tarfile.TarInfo("folder/").tobuf(tarfile.USTAR_FORMAT)[:156] + bytes(512 - 156))
    assert found(folder + header + b"abc".ljust(512, b"\0")) == [("folder/old", b"abc")]


@pytest.mark.parametrize("record", [b"nonsense", b"99 path=x\n", b"8 path=x\n", b"11 size=-1\n", b"10 path=x"])
def test_a_damaged_pax_header_is_an_error(record: bytes) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    with pytest.raises(errors.OriginError, match="the url: the pax header at offset 512"):
        found(info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0"))


@pytest.fixture
def archive() -> bytes:
    chance = random.Random(1)
    files = {"a.jpg": chance.randbytes(700), f"{LONG}.jpg": chance.randbytes(100), "c.jpg": chance.randbytes(512)}
    return packed(files, tarfile.PAX_FORMAT)


def test_cut_off_anywhere_is_an_error_or_a_beginning(archive: bytes) -> None:
    """At the boundary of two members nobody can tell; elsewhere the error names the archive and the offset."""
    whole = list(tar.members(read_of(archive), len(archive), "the url"))
    assert [member.size for member in whole] == [700, 100, 512]
    said: list[str] = []
    for size in range(0, len(archive), 4):
        try:
            members = list(tar.members(read_of(archive[:size]), size, "the url"))
        except errors.OriginError as error:
            said.append(str(error))
            continue
        assert members == whole[: len(members)]
        assert size % 512 == 0 or size >= whole[len(members) - 1].offset + whole[len(members) - 1].size
    assert len(said) > 0.1 * len(archive)
    assert all("the url: cut off" in text and "offset" in text for text in said)


def test_a_damaged_byte_is_an_error_or_data(archive: bytes) -> None:
    whole = list(tar.members(read_of(archive), len(archive), "the url"))
    said: list[str] = []
    for position in range(0, 4096, 5):
        damaged = bytearray(archive)
        damaged[position] ^= 0x15
        try:
            members = list(tar.members(read_of(bytes(damaged)), len(damaged), "the url"))
        except errors.ShoalError as error:
            said.append(str(error))
            continue
        inside = any(member.offset <= position < member.offset + -(-member.size // 512) * 512 for member in whole)
        assert members == whole or not inside
    assert len(said) > 150
    assert all("the url: " in text for text in said)
