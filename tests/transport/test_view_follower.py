"""Writing a view by compare and swap, and a follower that survives whatever its source does."""

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shoal_core import view
from shoal_core.errors import ConfigError, NotFound, OriginError, ShoalError
from shoal_transport import view_source
from shoal_transport.view_source import Follower, ViewSource
from tests.support.http_origin import Fault, HttpOrigin
from tests.support.views import json_of, of, origin, path
from tests.support.waiting import until

__all__ = ["origin", "path"]

TIMEOUT_S = 10.0


# Writing


def test_a_view_is_written_after_the_one_before(path: Path):
    source = ViewSource(str(path))
    source.write(of(2, "a", "b"))
    assert source.read(TIMEOUT_S) == of(2, "a", "b")
    for epoch in (1, 2, 4):
        with pytest.raises(ConfigError, match=f"{path}: epoch {epoch} cannot follow epoch 2"):
            source.write(of(epoch))
    assert source.read(TIMEOUT_S) is None
    assert sorted(os.listdir(path.parent)) == ["view.json", "view.json.lock"]


def test_the_first_view_makes_the_file(tmp_path: Path):
    path = tmp_path / "view.json"
    with pytest.raises(ConfigError, match="epoch 2 cannot follow epoch 0"):
        ViewSource(str(path)).write(of(2))
    ViewSource(f"file://{path}").write(of(1))
    assert ViewSource(str(path)).read(TIMEOUT_S) == of(1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_damaged_file_is_not_written_over(path: Path):
    path.write_bytes(b"{")
    with pytest.raises(ConfigError, match=f"{path}: no JSON"):
        ViewSource(str(path)).write(of(2))
    assert path.read_bytes() == b"{"


def test_a_view_that_could_not_be_read_is_not_written(path: Path):
    bad = view.make(2, [view.Node("a", ("host:1",), 1)])
    with pytest.raises(ConfigError, match=r"the view to be written to .*nodes\.a\.addresses"):
        ViewSource(str(path)).write(bad)
    assert ViewSource(str(path)).read(TIMEOUT_S) == of(1)


def test_the_mode_and_a_link_stay(path: Path):
    path.chmod(0o640)
    link = path.parent / "link.json"
    link.symlink_to("view.json")
    ViewSource(str(link)).write(of(2))
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert ViewSource(str(path)).read(TIMEOUT_S) == of(2)


def test_a_url_cannot_be_written():
    with pytest.raises(ConfigError, match="only a view in a file"):
        ViewSource("http://host/view").write(of(2))


def test_a_directory_that_is_not_there(tmp_path: Path):
    with pytest.raises(NotFound, match="No such file"):
        ViewSource(str(tmp_path / "missing" / "view.json")).write(of(1))


def test_a_write_that_fails_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OriginError, match="No space left"):
        ViewSource(str(path)).write(of(2))
    assert sorted(os.listdir(path.parent)) == ["view.json", "view.json.lock"]
    assert path.read_bytes() == json_of(1)


def test_of_many_writers_one_wins_each_epoch(path: Path):
    won: list[int] = []

    def write() -> None:
        for epoch in range(2, 12):
            with contextlib.suppress(ConfigError):
                ViewSource(str(path)).write(of(epoch))
                won.append(epoch)

    writers = [threading.Thread(target=write) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(won) == list(range(2, 12))
    assert ViewSource(str(path)).read(TIMEOUT_S) == of(11)


def test_readers_never_see_half_of_what_is_written(path: Path):
    names = [f"node-{number}" for number in range(300)]
    over = threading.Event()
    errors: list[ShoalError] = []

    def read() -> None:
        source = ViewSource(str(path))
        while not over.is_set():
            try:
                source.read(TIMEOUT_S)
            except ShoalError as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for epoch in range(2, 40):
        ViewSource(str(path)).write(of(epoch, *names[: epoch * 7]))
    over.set()
    reader.join()
    assert errors == []


def test_a_writer_that_never_ends_is_not_waited_for_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(view_source, "_TURN_S", 0.05)
    with view_source._turn(str(path)), pytest.raises(TimeoutError, match=r"view\.json\.lock: somebody else holds it"):
        ViewSource(str(path)).write(of(2))


# The follower


class Adopted:
    """What a follower passed on."""

    def __init__(self) -> None:
        self.epochs: list[int] = []
        self.error: Exception | None = None

    def __call__(self, offered: view.View) -> None:
        if self.error is not None:
            raise self.error
        self.epochs.append(offered.epoch)


@contextlib.contextmanager
def follower(location: object, adopt: Adopted, poll_s: float = 0.005) -> Iterator[Follower]:
    following = Follower(ViewSource(str(location)), poll_s, adopt)
    try:
        yield following
    finally:
        following.close()


def looks(following: Follower, count: int = 2) -> None:
    """Returns when the source has been read well so many times more."""
    for _ in range(count):
        before = following._read_at
        until(lambda before=before: following._read_at != before, "another look")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_each_later_epoch_is_adopted_once(path: Path):
    adopted = Adopted()
    with follower(path, adopted) as following:
        until(lambda: adopted.epochs == [1])
        ViewSource(str(path)).write(of(2))
        until(lambda: adopted.epochs == [1, 2])
        looks(following)
        assert following.last_error is None
    assert adopted.epochs == [1, 2]


def test_a_url_is_followed(origin: HttpOrigin):
    adopted = Adopted()
    with follower(origin.url("/view"), adopted):
        until(lambda: adopted.epochs == [1])
        origin.put("/view", json_of(5))
        until(lambda: adopted.epochs == [1, 5])


@pytest.mark.parametrize("epoch", [3, 2])
def test_another_view_that_is_not_later_is_said_and_not_adopted(path: Path, epoch: int):
    path.write_bytes(json_of(3))
    adopted = Adopted()
    with follower(path, adopted) as following:
        until(lambda: adopted.epochs == [3])
        replaced = path.parent / "new"
        replaced.write_bytes(json_of(epoch, "b"))
        replaced.replace(path)
        until(lambda: following.last_error is not None)
        assert f"epoch {epoch} is not later than 3" in str(following.last_error)
        looks(following)
        assert following.last_error is not None  # nothing changed since, and it is as wrong as before
        replaced.write_bytes(json_of(4, "b"))
        replaced.replace(path)
        until(lambda: adopted.epochs == [3, 4])
        until(lambda: following.last_error is None)


def test_an_error_is_survived_and_said_once(path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    path.write_bytes(json_of(1)[:-10])
    adopted = Adopted()
    with follower(path, adopted) as following:
        until(lambda: following.last_error is not None)
        assert "view.json: no JSON" in str(following.last_error)
        path.unlink()
        until(lambda: "No such file" in str(following.last_error))
        ViewSource(str(path)).write(of(1))
        until(lambda: following.last_error is None)
        until(lambda: adopted.epochs == [1])
        looks(following)
    said = warnings_of(caplog)
    assert len(said) == len({*said})
    assert "no JSON" in said[0] and "No such file" in said[-1]
    assert [record.message for record in caplog.records][-1] == f"the view is followed again: {path}"


def test_many_looks_at_the_same_error_are_one_line(origin: HttpOrigin, caplog: pytest.LogCaptureFixture):
    origin.fail("/view", Fault(status=503))
    with follower(origin.url("/view"), Adopted()) as following:
        origin.await_requests("/view", 5)
        age_s = following.age_s
        assert "503" in str(following.last_error)
        origin.heal("/view")
        until(lambda: following.last_error is None)
        assert age_s > 0
    assert len(warnings_of(caplog)) == 1


def test_who_cannot_adopt_is_asked_again_with_the_same_view(path: Path, caplog: pytest.LogCaptureFixture):
    adopted = Adopted()
    adopted.error = ValueError("too many nodes")
    with follower(path, adopted) as following:
        until(lambda: following.last_error is not None)
        looks(following)
        assert following.last_error == f"{path}: ValueError: too many nodes"
        adopted.error = None
        until(lambda: adopted.epochs == [1])
        until(lambda: following.last_error is None)
    assert len(warnings_of(caplog)) == 1
    assert "Traceback" in caplog.text


def test_the_age_is_that_of_the_last_good_read(path: Path):
    with follower(path, Adopted()) as following:
        looks(following)
        path.unlink()
        until(lambda: following.last_error is not None)
        first = following.age_s
        until(lambda: following.age_s > first)
        ViewSource(str(path)).write(of(1))
        looks(following)
        assert following.last_error is None


def test_closing_ends_the_thread_and_twice_is_fine(path: Path):
    adopted = Adopted()
    following = Follower(ViewSource(str(path)), 3600.0, adopted)
    until(lambda: adopted.epochs)
    following.close()
    until(lambda: not following._thread.is_alive())
    following.close()


def test_closing_from_inside_adopt(path: Path):
    ready = threading.Event()
    followers: list[Follower] = []

    def adopt(offered: view.View) -> None:
        assert ready.wait(TIMEOUT_S)
        followers[0].close()

    followers.append(Follower(ViewSource(str(path)), 0.005, adopt))
    ready.set()
    until(lambda: not followers[0]._thread.is_alive())
    assert followers[0].last_error is None


def test_closing_does_not_wait_for_a_server_and_nothing_comes_of_its_answer(
    origin: HttpOrigin, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(view_source, "_CLOSE_S", 0.01)
    gate = threading.Event()
    origin.fail("/view", Fault(gate=gate))
    adopted = Adopted()
    following = Follower(ViewSource(origin.url("/view")), 0.005, adopted)
    origin.await_requests("/view")
    following.close()
    assert following._thread.is_alive()
    gate.set()
    until(lambda: not following._thread.is_alive())
    assert adopted.epochs == []
