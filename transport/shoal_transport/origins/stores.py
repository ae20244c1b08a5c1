"""From a URL to an obstore store, the key in it, and the host that error texts should name.

One store object (a connection pool) per bucket or web server, kept for the next call. A URL's settings are those of
the longest configured prefix that covers it; credentials in the environment are obstore's own business. A data set
with options of its own (`own_options`) has stores of its own.

Keys are sent verbatim, but obstore refuses empty segments and drops slashes at both ends, and would thus read another
object than was asked for. S3 has such keys, so there everything up to the last double slash goes into the store's
endpoint. A key that ends in a slash is a directory's marker, not an object. A web URL that obstore would rewrite
(query, encoded slash, slash at the end) gets a store of its own whose key is empty.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, NamedTuple, cast
from urllib.parse import quote, unquote, urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, HTTPStore, LocalStore, ObjectStore, S3Store

from shoal_core.errors import BadRequest, NotFound
from shoal_transport.origins.interface import shown
from shoal_transport.origins.own_options import OwnOptions
from shoal_transport.origins.translation import unusable

STORES_MAX = 256
"""Stores kept open, of 0.1 to 0.2 MiB each. A signed URL needs one of its own, and so does a data set with credentials;
the least recently used goes first."""

_CONNECT_TIMEOUT = timedelta(seconds=5)
_SILENCE_TIMEOUT = timedelta(seconds=20)
"""A connection that sends nothing for so long is given up and the request repeated."""
_REQUEST_TIMEOUT = timedelta(hours=1)
"""obstore's own bound on one request, out of the way: the caller's is the one that counts."""
_RETRY_PERIOD = timedelta(seconds=60)
_BACKOFF = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2}

_CLIENT_OPTIONS = frozenset(
    (
        "allow_http", "allow_invalid_certificates", "connect_timeout", "default_content_type", "http1_only",
        "http2_keep_alive_interval", "http2_keep_alive_timeout", "http2_keep_alive_while_idle", "http2_only",
        "pool_idle_timeout", "pool_max_idle_per_host", "proxy_ca_certificate", "proxy_excludes", "proxy_url",
        "randomize_addresses", "read_timeout", "root_certificate", "timeout", "user_agent",
    )
)  # fmt: skip
_ENDPOINT_OPTIONS = ("aws_endpoint_url_s3", "endpoint", "endpoint_url", "aws_endpoint", "aws_endpoint_url")
_GCS_ENDPOINT = "google_base_url"
_BUCKET_STORES: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}


class Place(NamedTuple):
    """Where an object or a prefix lives."""

    store: ObjectStore
    key: str
    host: str


class Stores:
    """The stores of one node, made when first needed."""

    def __init__(
        self, settings: Mapping[str, Mapping[str, str]], own_options: OwnOptions, *, retry_count_max: int
    ) -> None:
        self._settings = {prefix: {k.lower(): v for k, v in given.items()} for prefix, given in settings.items()}
        self._own_options = own_options
        self._retry = {"max_retries": retry_count_max, "retry_timeout": _RETRY_PERIOD, "backoff": _BACKOFF}
        self._open: OrderedDict[str, ObjectStore] = OrderedDict()
        self._hosts: dict[str, str] = {}
        """Of open stores of buckets."""

    def locate(self, url: str, dataset: str = "", *, is_prefix: bool = False) -> Place:
        """`is_prefix` when everything below the URL is meant."""
        scheme, _, rest = url.partition("://")
        scheme = scheme.lower()
        if scheme == "file":
            return self._local(url, rest, is_prefix)
        host, _, path = rest.partition("/")
        if not host:
            raise BadRequest(f"{shown(url)}: no {'host' if scheme.startswith('http') else 'bucket'} in the URL")
        if scheme.startswith("http"):
            return self._web(url, scheme, host, path, is_prefix)
        return self._bucket(url, scheme, host, path, dataset, is_prefix)

    def __len__(self) -> int:
        """Stores that are open."""
        return len(self._open)

    def close(self) -> None:
        self._open.clear()
        self._hosts.clear()

    def _local(self, url: str, path: str, is_prefix: bool) -> Place:
        if not path.startswith("/"):
            raise BadRequest(f"{shown(url)}: local files have an absolute path after three slashes: file:///path")
        if path.endswith("/") and not is_prefix:
            raise NotFound(f"{shown(url)}: names a directory, not an object")
        segments = [segment for segment in path.split("/") if segment not in ("", ".")]
        if ".." in segments:
            raise BadRequest(f"{shown(url)}: '..' in the path of a file URL")
        return Place(self._store("file", LocalStore, url), "/".join(segments), "the local file system")

    def _web(self, url: str, scheme: str, host: str, path: str, is_prefix: bool) -> Place:
        path = path.partition("#")[0]
        if is_prefix:
            path = path.partition("?")[0].strip("/")
        key = unquote(path)
        exact = not is_prefix and ("?" in path or "%2f" in path.lower() or "" in path.split("/"))
        config, client = self._divided(self._configured(url)[1], plain_http=scheme == "http")
        if config:
            raise BadRequest(f"{shown(url)}: web origins have no option named {', '.join(sorted(config))}")
        location = f"{scheme}://{host}/{path if exact else ''}"
        store = self._store(location, HTTPStore, url, location, client_options=client, retry_config=self._retry)
        return Place(store, "" if exact else key, host.rpartition("@")[2])

    def _bucket(self, url: str, scheme: str, bucket: str, key: str, dataset: str, is_prefix: bool) -> Place:
        if is_prefix:
            key = key.strip("/")
        elif not key or key.endswith("/"):
            raise NotFound(f"{shown(url)}: names a directory, not an object")
        prefix, options = self._options(url, dataset)
        above, slashes, below = ("/" + key).rpartition("//")
        name = f"{scheme}://{bucket}/{above if slashes else ''} {prefix}"
        if name in self._hosts and name in self._open and not is_prefix:  # as for every object but the first
            return Place(self._kept(name), below if slashes else key, self._hosts[name])
        endpoint = _endpoint(options) if scheme == "s3" else options.get(_GCS_ENDPOINT, options.get("endpoint", ""))
        config, client = self._divided(options, plain_http=endpoint.startswith("http://"))
        if slashes:
            if scheme != "s3" or is_prefix:
                raise BadRequest(f"{shown(url)}: two slashes in a row: such keys can be read, from s3 only, not listed")
            key = below
            region = config.get("region") or config.get("aws_region") or os.environ.get("AWS_REGION") or "us-east-1"
            root = endpoint.rstrip("/") or f"https://s3.{region}.amazonaws.com"
            config = {name: value for name, value in config.items() if name not in _ENDPOINT_OPTIONS}
            config["endpoint"] = f"{root}/{bucket}{quote(above, safe='/-._~')}/"
            config["virtual_hosted_style_request"] = "true"  # the endpoint is taken as it is, bucket included
        store = self._store(
            name, _BUCKET_STORES[scheme], url, bucket, config=config, client_options=client, retry_config=self._retry
        )
        host = self._hosts[name] = urlsplit(endpoint).netloc.rpartition("@")[2] or f"{scheme}://{bucket}"
        return Place(store, key, host)

    def _store(self, name: str, kind: Any, url: str, *arguments: Any, **options: Any) -> ObjectStore:
        if name not in self._open:
            try:
                store = cast("ObjectStore", kind(*arguments, **options))
            except (BaseError, ValueError) as error:
                raise unusable(error, url) from None
            self._open[name] = store
            if len(self._open) > STORES_MAX:
                self._hosts.pop(self._open.popitem(last=False)[0], None)
        return self._kept(name)

    def _kept(self, name: str) -> ObjectStore:
        self._open.move_to_end(name)
        return self._open[name]

    def _options(self, url: str, dataset: str) -> tuple[str, dict[str, str]]:
        """What stands for the options in a store's name, and the options."""
        own = self._own_options.options(dataset)
        if own is None:
            return self._configured(url)
        name = f"{dataset} {own.number}"
        return name, ({} if own.is_alone else self._configured(url)[1]) | dict(own.values)

    def _configured(self, url: str) -> tuple[str, dict[str, str]]:
        """The longest configured prefix that covers the URL, and its options."""
        covering = [p for p in self._settings if url == p or url.startswith(p if p.endswith("/") else p + "/")]
        prefix = max(covering, key=len, default="")
        return prefix, self._settings.get(prefix, {})

    def _divided(self, options: dict[str, str], *, plain_http: bool) -> tuple[dict[str, str], dict[str, Any]]:
        """Options of the store, options of its HTTP client."""
        client: dict[str, Any] = {
            "connect_timeout": _CONNECT_TIMEOUT, "read_timeout": _SILENCE_TIMEOUT, "timeout": _REQUEST_TIMEOUT,
            "allow_http": plain_http,
        }  # fmt: skip
        client |= {name: value for name, value in options.items() if name in _CLIENT_OPTIONS}
        return {name: value for name, value in options.items() if name not in _CLIENT_OPTIONS}, client


def _endpoint(options: Mapping[str, str]) -> str:
    """Where S3 is, by the settings, else by the environment; '' for Amazon's own."""
    given = [options[name] for name in _ENDPOINT_OPTIONS if name in options]
    given += [os.environ[name.upper()] for name in _ENDPOINT_OPTIONS if name.upper() in os.environ]
    return next(filter(None, given), "")
