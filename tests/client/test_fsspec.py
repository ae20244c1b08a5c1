"""The file system through fsspec's front doors, on real files behind a real node; hosts are in test_fsspec_hosts.py."""

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from fsspec.core import url_to_fs

import shoal
from shoal import errors, fsspec_tree, shared_client
from shoal.fsspec import ShoalFileFileSystem, ShoalFileSystem
from tests.support import running_node
from tests.support.http_origin import HttpOrigin
from tests.support.s3_server import S3Server

FILES = {
    "a.csv": b"x,y\n1,2\n3,4\n",
    "b.bin": bytes(range(256)) * 2000,
    "sub/c.csv": b"x,y\n5,6\n",
    "sub/deep/d.csv": b"x,y\n",
    "sub/deep/e – ä%20#.csv": b"odd name",
    "sub-2/empty": b"",
}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    for name, content in FILES.items():
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return f"{tmp_path}/files"


@pytest.fixture
def files(folder: str, address: str) -> ShoalFileFileSystem:
    return fsspec.filesystem("shoal+file", address=address, skip_instance_cache=True)


# Spelling.


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "http", "https"])
def test_entry_points_and_urls(scheme: str) -> None:
    fs, path = url_to_fs(f"shoal+{scheme}://host/some/key")
    assert isinstance(fs, ShoalFileSystem)
    assert path == "host/some/key"
    assert fs.unstrip_protocol(path) == f"shoal+{scheme}://host/some/key"
    assert fs._url(path) == f"{scheme}://host/some/key"


def test_file_paths_count_from_the_root() -> None:
    assert url_to_fs("shoal+file:///a/./b//c/")[1] == "/a/b/c"
    assert url_to_fs("shoal+file://a/b")[1] == "/a/b"
    assert url_to_fs("shoal+file:///")[1] == "/"


def test_named_data_sets() -> None:
    fs, path = url_to_fs("shoal://name/some/path")
    assert (path, fs._url(path)) == ("name/some/path", "shoal://name/some/path")


# Looking.


def test_lists_as_a_local_file_system_does(files: ShoalFileFileSystem, folder: str) -> None:
    """Same paths, types and sizes as fsspec's own over the same directory, whatever was asked before."""
    local = fsspec.filesystem("file")
    for _ in range(2):
        for path in (folder, f"{folder}/sub", f"{folder}/a.csv"):
            assert files.ls(path, detail=False) == sorted(local.ls(path, detail=False))
            for options in ({}, {"withdirs": True}, {"maxdepth": 1}, {"maxdepth": 2, "withdirs": True}):
                assert files.find(path, **options) == local.find(path, **options), (path, options)
        for pattern in ("*", "*.csv", "**", "**/*.csv", "sub*/*", "sub/deep/[de]*", "nothing*"):
            assert files.glob(f"{folder}/{pattern}") == local.glob(f"{folder}/{pattern}"), pattern
        assert next(iter(files.walk(folder)))[0] == folder
        assert files.du(folder) == sum(map(len, FILES.values()))
        for name, entry in files.find(folder, detail=True, withdirs=True).items():
            assert (entry["type"], entry["name"]) == (local.info(name)["type"], name)
            if entry["type"] == "file":
                assert entry["size"] == local.info(name)["size"]
                assert files.info(name) == entry


def test_info_of_a_file_lists_nothing(files: ShoalFileFileSystem, folder: str) -> None:
    entry = files.info(f"{folder}/a.csv")
    assert (entry["name"], entry["size"], entry["type"]) == (f"{folder}/a.csv", 12, "file")
    assert entry["ETag"]
    assert not files.dircache


def test_tells_files_and_directories_apart(files: ShoalFileFileSystem, folder: str) -> None:
    assert files.isdir(folder) and files.isdir(f"{folder}/sub/deep")
    assert not files.isdir(f"{folder}/a.csv") and not files.isdir(f"{folder}/missing")
    assert files.isfile(f"{folder}/a.csv") and not files.isfile(f"{folder}/sub")
    assert files.exists(f"{folder}/a.csv") and files.exists(f"{folder}/sub")
    assert not files.exists(f"{folder}/missing") and not files.exists(f"{folder}/a")


def test_a_listing_is_remembered_until_it_is_invalidated(files: ShoalFileFileSystem, folder: str) -> None:
    before = files.ls(folder, detail=False)
    Path(folder, "new").write_bytes(b"new")
    assert files.ls(folder, detail=False) == before
    assert files.ls(folder, detail=False, refresh=True) == sorted([*before, f"{folder}/new"])
    Path(folder, "sub", "newer").write_bytes(b"newer")
    files.invalidate_cache(f"{folder}/sub")
    assert f"{folder}/sub/newer" in files.find(f"{folder}/sub")


def test_a_listing_is_not_remembered_if_not_wanted(folder: str, address: str) -> None:
    files = fsspec.filesystem("shoal+file", address=address, use_listings_cache=False)
    before = files.ls(folder, detail=False)
    Path(folder, "new").write_bytes(b"new")
    assert files.ls(folder, detail=False) == sorted([*before, f"{folder}/new"])


def test_what_is_missing(files: ShoalFileFileSystem, folder: str) -> None:
    missing = f"{folder}/missing"
    for use in (files.info, files.ls, files.open, files.cat, files.cat_file, files.size):
        with pytest.raises(FileNotFoundError, match="missing"):
            use(missing)
    assert files.find(missing) == files.glob(missing) == []


def test_levels_hold_every_directory_once() -> None:
    entries = [fsspec_tree.file_entry(name, 1, "") for name in ("b/x/y/1", "b/2", "b/x/3", "b/x/y/4")]
    tree = fsspec_tree.levels("b", entries)
    assert {directory: [entry["name"] for entry in found] for directory, found in tree.items()} == {
        "b": ["b/x", "b/2"],
        "b/x": ["b/x/y", "b/x/3"],
        "b/x/y": ["b/x/y/1", "b/x/y/4"],
    }


# Reading.


def test_cat(files: ShoalFileFileSystem, folder: str) -> None:
    path = f"{folder}/b.bin"
    content = FILES["b.bin"]
    assert files.cat(path) == content
    for start, end in ((0, 10), (5, None), (None, 7), (-5, None), (10, -10), (-20, -10), (9, 3), (600_000, None)):
        assert files.cat_file(path, start, end) == content[start:end], (start, end)
    assert files.head(path, 5) == content[:5]
    assert files.tail(path, 5) == content[-5:]
    assert files.read_block(f"{folder}/a.csv", 2, 5, b"\n") == b"1,2\n"


def test_cat_of_many_is_one_request(files: ShoalFileFileSystem, folder: str) -> None:
    paths = [f"{folder}/{name}" for name in FILES]
    expected = {f"{folder}/{name}": content for name, content in FILES.items()}
    assert files.cat(paths) == expected
    assert files.cat(folder, recursive=True) == expected
    assert files.cat(f"{folder}/*.csv") == {f"{folder}/a.csv": FILES["a.csv"]}


def test_cat_treats_errors_as_asked(files: ShoalFileFileSystem, folder: str) -> None:
    there, missing = f"{folder}/a.csv", f"{folder}/missing"
    with pytest.raises(FileNotFoundError):
        files.cat([there, missing])
    assert files.cat([there, missing], on_error="omit") == {there: FILES["a.csv"]}
    assert isinstance(files.cat([there, missing], on_error="return")[missing], FileNotFoundError)


def test_cat_ranges(files: ShoalFileFileSystem, folder: str) -> None:
    there, missing = f"{folder}/b.bin", f"{folder}/missing"
    content = FILES["b.bin"]
    got = files.cat_ranges([there] * 3, [0, 1000, -3], [2, 1002, None])
    assert got == [content[:2], content[1000:1002], content[-3:]]
    assert files.cat_ranges([there, there], 3, 5) == [content[3:5]] * 2
    first, second = files.cat_ranges([missing, there], 0, 4)
    assert isinstance(first, FileNotFoundError)
    assert second == content[:4]
    with pytest.raises(FileNotFoundError):
        files.cat_ranges([missing], 0, 4, on_error="raise")
    with pytest.raises(errors.BadRequest, match="2 starts"):
        files.cat_ranges([there], [0, 1], [2])


def test_open(files: ShoalFileFileSystem, folder: str, address: str) -> None:
    with files.open(f"{folder}/b.bin", block_size=1000) as opened:
        opened.seek(100_000)
        assert opened.read(2000) == FILES["b.bin"][100_000:102_000]
    with fsspec.open(f"shoal+file://{folder}/a.csv", "rt", address=address) as text:
        assert text.readline() == "x,y\n"
    odd = "sub/deep/e – ä%20#.csv"
    assert files.cat_file(f"{folder}/{odd}") == FILES[odd]


def test_get(files: ShoalFileFileSystem, folder: str, tmp_path: Path) -> None:
    files.get(f"{folder}/sub", f"{tmp_path}/copy", recursive=True)
    assert (tmp_path / "copy" / "deep" / "d.csv").read_bytes() == FILES["sub/deep/d.csv"]
    assert (tmp_path / "copy" / "c.csv").read_bytes() == FILES["sub/c.csv"]


WRITES: list[Callable[[ShoalFileFileSystem, str], object]] = [
    lambda fs, path: fs.open(path, "wb"),
    lambda fs, path: fs.open(path, "at"),
    lambda fs, path: fs.pipe(path, b"x"),
    lambda fs, path: fs.touch(path),
    lambda fs, path: fs.rm(path),
    lambda fs, path: fs.mkdir(path),
    lambda fs, path: fs.makedirs(path, exist_ok=True),
    lambda fs, path: fs.put_file(__file__, path),
    lambda fs, path: fs.cp_file(path, path),
    lambda fs, path: fs.mv(path, path + "2"),
]


@pytest.mark.parametrize("write", WRITES)
def test_writers_are_sent_to_the_origin(
    files: ShoalFileFileSystem, folder: str, write: Callable[[ShoalFileFileSystem, str], object]
) -> None:
    with pytest.raises(errors.BadRequest, match=f"file://{folder}/a.csv2?: .*write to the origin"):
        write(files, f"{folder}/a.csv")
    assert Path(folder, "a.csv").read_bytes() == FILES["a.csv"]


# Being an object among others.


def test_instances_are_equal_by_their_options(address: str) -> None:
    one, other = (fsspec.filesystem("shoal+file", address=address) for _ in range(2))
    assert one is other
    copy = pickle.loads(pickle.dumps(one))
    assert copy == one
    assert hash(copy) == hash(one)
    assert ShoalFileSystem.from_json(one.to_json()) == one
    assert fsspec.filesystem("shoal+file", address=address, use_listings_cache=False) != one


def test_a_process_has_one_client_for_an_address(address: str) -> None:
    one = fsspec.filesystem("shoal+file", address=address)
    other = fsspec.filesystem("shoal+s3", address=address)
    assert one.client is other.client is shared_client.get(address=address)


def _read_elsewhere(files: ShoalFileSystem, path: str, answers: "multiprocessing.Queue[bytes]") -> None:
    answers.put(files.cat_file(path))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_works_in_another_process(files: ShoalFileFileSystem, folder: str, method: str) -> None:
    assert files.cat_file(f"{folder}/a.csv") == FILES["a.csv"]  # the parent is connected when it forks
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=_read_elsewhere, args=(files, f"{folder}/b.bin", answers))
    child.start()
    assert answers.get(timeout=50) == FILES["b.bin"]
    child.join()
    assert child.exitcode == 0
    assert files.cat_file(f"{folder}/sub/c.csv") == FILES["sub/c.csv"]


def test_unknown_options_are_named(address: str) -> None:
    with pytest.raises(errors.BadRequest, match=r"shoal\+s3: unknown option endpoint_url, key"):
        fsspec.filesystem("shoal+s3", address=address, key="me", endpoint_url="http://elsewhere")


# Chaining.


def test_a_chained_url_is_read_through_the_node(folder: str, address: str, client: shoal.Client) -> None:
    url = f"shoal::file://{folder}"
    options = {"shoal": {"address": address}}
    with fsspec.open(f"{url}/a.csv", "rb", **options) as opened:
        assert opened.read() == FILES["a.csv"]
    assert client.inspect([f"file://{folder}/a.csv"])[0].dram_bytes > 0
    several = fsspec.open_files(f"{url}/sub/**/*.csv", "rb", **options)
    assert [opened.path.removeprefix(folder) for opened in several] == [f"/{n}" for n in FILES if n.startswith("sub/")]
    fs, path = url_to_fs(f"{url}/sub", **options)
    assert fs.ls(path, detail=False) == [f"{folder}/sub/c.csv", f"{folder}/sub/deep"]
    assert fs.unstrip_protocol(f"{folder}/a.csv") == f"{url}/a.csv"
    copy = pickle.loads(pickle.dumps(fs))
    assert copy == fs
    assert copy.ls(path, detail=False) == fs.ls(path, detail=False)


def test_chained_s3(s3_server: S3Server, node_process: running_node.MakeProcess) -> None:
    s3_server.put("chained", "dir/x.csv", b"a,b\n")
    node = node_process(environment=s3_server.environment)
    fs, path = url_to_fs("shoal::s3://chained/dir/x.csv", shoal={"address": node.address})
    assert fs.cat(path) == b"a,b\n"
    assert s3_server.gets("chained", "dir/x.csv") == 1
    assert fs.cat("s3://chained/dir/x.csv") == b"a,b\n"
    assert s3_server.gets("chained", "dir/x.csv") == 1


def test_a_chained_path_from_an_older_fsspec(folder: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there was a ChainedFileSystem, fsspec gave the path as `fo` and called with an empty one."""
    monkeypatch.setattr("shoal.fsspec.PATH_COMES_AS_FO", True)
    options = {"address": address, "skip_instance_cache": True}
    fs = fsspec.filesystem("shoal", target_protocol="file", fo=f"{folder}/a.csv", **options)
    assert fs.cat("") == FILES["a.csv"]
    assert fs.open("").read() == FILES["a.csv"]
    fs = fsspec.filesystem("shoal", target_protocol="file", fo=f"{folder}/sub", **options)
    assert fs.find("") == [f"{folder}/{name}" for name in FILES if name.startswith("sub/")]
    assert fs.cat(f"{folder}/a.csv") == FILES["a.csv"]


@pytest.mark.parametrize("option", ["key", "secret", "endpoint_url", "anon", "client_kwargs", "profile", "anything"])
def test_a_target_option_that_cannot_reach_the_node_is_refused(option: str) -> None:
    with pytest.raises(errors.BadRequest, match=f"shoal::s3: option {option} cannot be passed on"):
        url_to_fs("shoal::s3://bucket/key", s3={option: "value", "default_block_size": 5, "token": None})
    url_to_fs("shoal::s3://bucket/key", s3={"default_block_size": 5, "token": None, "use_listings_cache": False})


def test_only_shoal_itself_chains() -> None:
    with pytest.raises(errors.BadRequest, match="write shoal::file://"):
        fsspec.filesystem("shoal+s3", target_protocol="file")


# Origins that are not a directory.


def test_s3(s3_server: S3Server, node_process: running_node.MakeProcess) -> None:
    address = node_process(environment=s3_server.environment).address
    for key in ("data/one.csv", "data/sub/two.csv", "database"):
        s3_server.put("listed", key, key.encode())
    fs = fsspec.filesystem("shoal+s3", address=address, skip_instance_cache=True)
    assert fs.info("listed/data/one.csv")["size"] == 12
    assert s3_server.count("ListObjectsV2", "listed") == 0
    assert fs.ls("listed/data", detail=False) == ["listed/data/one.csv", "listed/data/sub"]
    assert fs.ls("listed", detail=False) == ["listed/data", "listed/database"]
    assert fs.find("shoal+s3://listed/data") == ["listed/data/one.csv", "listed/data/sub/two.csv"]
    assert fs.glob("listed/**/*.csv") == ["listed/data/one.csv", "listed/data/sub/two.csv"]
    assert fs.isdir("listed/data") and fs.isfile("listed/database") and not fs.exists("listed/dat")
    heads = s3_server.count("HeadObject", "listed")
    assert fs.cat(["listed/data/one.csv", "listed/database"])["listed/database"] == b"database"
    assert s3_server.count("HeadObject", "listed") == heads  # the listing told all
    with pytest.raises(FileNotFoundError):
        fs.ls("listed/nothing")


def test_http(http_origin: HttpOrigin, address: str) -> None:
    base = http_origin.base_url.removeprefix("http://")
    http_origin.put("/dir/a b.csv", b"x,y\n")
    fs = fsspec.filesystem("shoal+http", address=address)
    path = f"{base}/dir/a%20b.csv"
    assert fs.cat(path) == b"x,y\n"
    assert fs.glob(path) == [path]
    assert fs.isfile(path) and not fs.exists(f"{base}/dir/missing") and not fs.isdir(f"{base}/missing")
    with fsspec.open(f"shoal+http://{path}", "rt", address=address) as text:
        assert text.read() == "x,y\n"


def test_an_origin_that_cannot_be_asked_is_not_an_empty_one(http_origin: HttpOrigin, address: str) -> None:
    """exists() must not answer 'no' where the answer is not known."""
    url = http_origin.put("/x", b"x")
    closed_port = 9  # discard: nothing listens there
    fs = fsspec.filesystem("shoal+http", address=address, deadline_s=5.0)
    assert fs.exists(url.removeprefix("http://"))
    with pytest.raises(errors.ShoalError, match=r"127\.0\.0\.1"):
        fs.exists(f"127.0.0.1:{closed_port}/x")
