"""Shoal as an fsspec file system: pandas, pyarrow, Hugging Face datasets and whatever else opens URLs read through it.

Three spellings. `shoal+s3://bucket/key` (likewise gs, az, http, https, file) names an object at its origin and needs
nothing but the node. `shoal::s3://bucket/key` chains as `filecache::` does: fsspec asks the target's own file system
(s3fs, say) how its URLs are spelled, and the bytes come through the node. `shoal://name/path` is in a dataset that was
declared with the node.

The node reads origins with its own settings and credentials. A target option that would change what is read, or with
whose rights (keys, endpoints, anonymous access), cannot reach it, so it is refused by name and never ignored. All is
read-only: writers are sent to the origin's own URL.

`info` of a file is one HEAD at most and never a listing. A directory costs one recursive listing, remembered for
`listings_expiry_time` (60 s unless told otherwise, like everything a client remembers of an origin). File systems
share one client per process and address, so fsspec's instance per thread does not become a connection per thread.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from fsspec import AbstractFileSystem, get_filesystem_class

from shoal import file, fsspec_tree, shared_client
from shoal_core import limits
from shoal_core.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.client import Client

    _Base = Any  # fsspec's annotations hold neither for its own subclasses nor for strings in place of lists
else:
    try:
        from fsspec.implementations.chained import ChainedFileSystem as _Base
    except ImportError:  # an older fsspec gives the chained path as `fo` only, and the path itself is empty
        _Base = AbstractFileSystem
PATH_COMES_AS_FO = _Base.__name__ == "AbstractFileSystem"

TARGET_SCHEMES = {
    "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az", "local": "file",
}  # fmt: skip
"""fsspec's protocols in the node's spelling, where they differ or have several."""

_BASE_OPTIONS = frozenset(("use_listings_cache", "listings_expiry_time", "max_paths", "asynchronous", "loop"))
_HARMLESS_TARGET_OPTIONS = _BASE_OPTIONS | frozenset(
    (
        "skip_instance_cache", "auto_mkdir", "default_block_size", "default_fill_cache", "default_cache_type",
        "block_size", "blocksize", "cache_type", "cache_options", "cache_regions", "max_concurrency",
    )
)  # fmt: skip
"""They change how fsspec itself would read, neither what is read nor with whose rights."""


class ShoalFileSystem(_Base):
    """`shoal://name/path` and, chained, `shoal::TARGET`.

    fsspec before 2025.10 tells a chained file system the first path only: give it one URL (or glob) at a time.
    `address`, `embedded` and `deadline_s` are those of `shoal.connect`; `use_listings_cache`, `listings_expiry_time`
    and `max_paths` are fsspec's.
    """

    protocol: ClassVar[str] = "shoal"
    origin_scheme: ClassVar[str | None] = None
    _strip_tokenize_options = () if PATH_COMES_AS_FO else ("fo",)

    def __init__(
        self,
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        fo: str | None = None,
        *,
        address: str | None = None,
        embedded: bool | None = None,
        deadline_s: float | None = None,
        **options: Any,
    ) -> None:
        unknown = sorted(set(options) - _BASE_OPTIONS)
        if unknown:
            raise BadRequest(
                f"{self.protocol}: unknown option {', '.join(unknown)}: the node reads origins with its own settings,"
                " so keys and endpoints belong into [origins] of its configuration"
            )
        options.setdefault("listings_expiry_time", limits.RESOLVE_FRESH_S)
        super().__init__(**options)
        self._connection = {"address": address, "embedded": embedded, "deadline_s": deadline_s}
        self._scheme = self.origin_scheme or "shoal"
        self._target: type[AbstractFileSystem] | None = None
        if target_protocol is not None:
            self._chain(target_protocol, target_options or {}, fo or "")

    def _chain(self, protocol: str, options: dict[str, Any], path: str) -> None:
        if self.origin_scheme is not None:
            raise BadRequest(f"{self.protocol}:: cannot be chained; write shoal::{protocol}://...")
        refused = sorted(n for n, v in options.items() if v is not None and n not in _HARMLESS_TARGET_OPTIONS)
        if refused:
            raise BadRequest(
                f"shoal::{protocol}: option {', '.join(refused)} cannot be passed on: the node reads {protocol} with"
                f' its own settings; set what is needed in its [origins."{protocol}://..."] and drop it here'
            )
        self._scheme = TARGET_SCHEMES.get(protocol, protocol)
        self._target = get_filesystem_class(protocol)
        self._path_if_empty = path if PATH_COMES_AS_FO else ""
        # As fsspec's own caching file systems do: each instance has another target, hence another spelling.
        self._strip_protocol = self._strip_chained

    def _strip_chained(self, path: Any) -> Any:
        if isinstance(path, list):
            return [self._strip_chained(name) for name in path]
        assert self._target is not None
        return self._target._strip_protocol(  # pyright: ignore[reportPrivateUsage] - fsspec's own subclasses do it
            type(self)._strip_protocol(path) or self._path_if_empty
        )

    def unstrip_protocol(self, name: str) -> str:
        if self._target is None:
            return super().unstrip_protocol(name)
        return f"shoal::{self._url(self._strip_protocol(name))}"

    @property
    def client(self) -> Client:
        """This process's client; shared by every file system with the same address."""
        return shared_client.get(**self._connection)

    @property
    def _is_web(self) -> bool:
        return self._scheme in ("http", "https")

    def _url(self, path: str) -> str:
        """The path in the node's spelling. fsspec's HTTP paths are whole URLs already."""
        return path if self._is_web and "://" in path else f"{self._scheme}://{path}"

    # What is there.

    def info(self, path: str, **_: Any) -> fsspec_tree.Entry:
        path = self._strip_protocol(path)
        if path in self.dircache or path == self.root_marker:
            return fsspec_tree.directory_entry(path)
        try:
            found = self.client.info(self._url(path))
        except NotFound:
            if self._is_web:
                raise  # the web has no directories
            self._list(path)
            return fsspec_tree.directory_entry(path)
        return fsspec_tree.file_entry(path, found.size, found.etag)

    def ls(self, path: str, detail: bool = True, refresh: bool = False, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        entries = None if refresh else self.dircache.get(path)
        if entries is None:
            try:
                entries = self._list(path)[path]
            except NotFound:
                entries = [self.info(path)]  # a file lists itself
        return list(entries) if detail else sorted(entry["name"] for entry in entries)

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        if maxdepth is not None and maxdepth < 1:
            raise BadRequest(f"{path}: maxdepth must be at least 1, not {maxdepth}")
        path = self._strip_protocol(path)
        try:
            entries = fsspec_tree.below(self.dircache, path, maxdepth)
        except KeyError:
            try:
                entries = fsspec_tree.below(self._list(path), path, maxdepth)
            except NotFound:
                found = {path: self.info(path)} if self.isfile(path) else {}
                return found if detail else list(found)
        if withdirs and path != self.root_marker:
            entries.append(fsspec_tree.directory_entry(path))
        found = {entry["name"]: entry for entry in entries if withdirs or entry["type"] == "file"}
        return dict(sorted(found.items())) if detail else sorted(found)

    def glob(self, path: str, maxdepth: int | None = None, **options: Any) -> Any:
        if self._is_web and not any(sign in path for sign in "*["):  # there, '?' begins a query
            path = self._strip_protocol(path)
            found = {path: self.info(path)} if self.exists(path) else {}
            return found if options.get("detail") else list(found)
        return super().glob(path, maxdepth=maxdepth, **options)

    def exists(self, path: str, **_: Any) -> bool:
        return self._type(path) is not None

    def isdir(self, path: str) -> bool:
        return self._type(path) == "directory"

    def isfile(self, path: str) -> bool:
        return self._type(path) == "file"

    def _type(self, path: str) -> str | None:
        """None if nothing is there. An origin that cannot be asked is an error, and not a 'no'."""
        try:
            return self.info(path)["type"]
        except FileNotFoundError:
            return None

    def _list(self, path: str) -> dict[str, list[fsspec_tree.Entry]]:
        """All levels below a directory, from the origin; remembered as fsspec's options say."""
        url = self._url(path).rstrip("/") + "/"
        found = self.client.list(url)
        if not found and "/" in path and self._scheme != "file":
            raise NotFound(f"{self._url(path)}: no such object or directory")
        base = path.rstrip("/") + "/" if path else ""
        if found and not found[0].url.startswith(url):
            raise BadRequest(f"{url}: the origin spells it otherwise, as in {found[0].url}; use its spelling")
        tree = fsspec_tree.levels(
            path, (fsspec_tree.file_entry(base + o.url[len(url) :], o.size, o.etag) for o in found)
        )
        for directory, entries in tree.items():
            self.dircache[directory] = entries
        return tree

    def invalidate_cache(self, path: str | None = None) -> None:
        if path is None:
            self.dircache.clear()
            return
        path = self._strip_protocol(path)
        for directory in [d for d in self.dircache if d == path or f"{d}/".startswith(f"{path}/")]:
            self.dircache.pop(directory, None)
        super().invalidate_cache(path)

    # What is in it.

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **_: Any) -> file.BufferedShoalFile:
        """`block_size` is the size of the buffer; fsspec's other hints (cache_type and so on) have nothing to do."""
        return file.open_binary(self.client, self._url(path), mode, buffer_bytes=block_size or file.BUFFER_BYTES)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self.client.read(*self._span(self._strip_protocol(path), start, end))

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | Sequence[int | None] | None,
        ends: int | Sequence[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        first = [starts] * len(paths) if starts is None or isinstance(starts, int) else starts
        last = [ends] * len(paths) if ends is None or isinstance(ends, int) else ends
        if not len(paths) == len(first) == len(last):
            raise BadRequest(f"{len(paths)} paths, {len(first)} starts and {len(last)} ends: the numbers must agree")
        spans = [self._span(self._strip_protocol(p), s, e) for p, s, e in zip(paths, first, last, strict=True)]
        return self.client.read_many(spans, return_errors=on_error == "return")

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **_: Any) -> Any:
        paths: list[str] = self.expand_path(path)
        if recursive:
            paths = [name for found in paths for name in self.find(found)]
        elif isinstance(path, (str, os.PathLike)) and paths == [self._strip_protocol(path)]:
            return self.cat_file(paths[0])
        urls = [self._url(name) for name in paths]
        contents = self.client.read_many(urls, return_errors=on_error != "raise")
        keep_errors = on_error == "return"
        return {
            name: content
            for name, content in zip(paths, contents, strict=True)
            if keep_errors or not isinstance(content, Exception)
        }

    def _span(self, path: str, start: int | None, end: int | None) -> tuple[str, int, int | None]:
        """URL, offset and length of a Python slice of the file; only negative limits need its size."""
        url = self._url(path)
        if (start or 0) < 0 or (end or 0) < 0:
            start, end, _ = slice(start, end).indices(self.client.info(url).size)
        offset = start or 0
        return url, offset, None if end is None else max(0, end - offset)

    # What cannot be done: fsspec's own versions do nothing, or fail with less of a reason.

    def _refuse(self, path: Any, *_: Any, **__: Any) -> NoReturn:
        raise BadRequest(f"{self._url(self._strip_protocol(path))}: Shoal only reads; write to the origin itself")

    mkdir = makedirs = rmdir = rm = rm_file = touch = pipe_file = _refuse

    def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> NoReturn:
        self._refuse(rpath)

    def cp_file(self, path1: str, path2: str, **_: Any) -> NoReturn:
        self._refuse(path2)


class ShoalS3FileSystem(ShoalFileSystem):
    protocol = "shoal+s3"
    origin_scheme = "s3"


class ShoalGSFileSystem(ShoalFileSystem):
    protocol = "shoal+gs"
    origin_scheme = "gs"


class ShoalAzureFileSystem(ShoalFileSystem):
    protocol = "shoal+az"
    origin_scheme = "az"


class ShoalHTTPFileSystem(ShoalFileSystem):
    protocol = "shoal+http"
    origin_scheme = "http"


class ShoalHTTPSFileSystem(ShoalFileSystem):
    protocol = "shoal+https"
    origin_scheme = "https"


class ShoalFileFileSystem(ShoalFileSystem):
    """Every path counts from the root: a node has no working directory in common with its clients. (Hugging Face
    datasets also drops one of the three slashes when it streams, and means the same file.)"""

    protocol = "shoal+file"
    origin_scheme = "file"
    root_marker = "/"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        path = super()._strip_protocol(path)
        return path if isinstance(path, list) else os.path.normpath("/" + path.lstrip("/"))
