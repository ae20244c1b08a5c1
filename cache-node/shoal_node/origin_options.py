"""How a data set's object store is reached: from its URL, endpoint, region and secret to options of the store. Pure.

A secret's keys are named as the environment variables of the store's own tools, and only those are understood that
carry a value themselves. One that names a file or a service would have the node read its own files, or prove its own
identity, for whoever wrote the secret. For the same reason a data set that comes from a tenant may not name every
place: files of the node but for those below /mnt, and the cloud's metadata service, are nobody's data.

Values are never part of an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from shoal_core.errors import ConfigError

_S3 = {
    "AWS_ACCESS_KEY_ID": "access_key_id",
    "AWS_SECRET_ACCESS_KEY": "secret_access_key",
    "AWS_SESSION_TOKEN": "session_token",
    "AWS_DEFAULT_REGION": "region",
    "AWS_REGION": "region",
    "AWS_ENDPOINT_URL": "endpoint",
}
_AZURE = {
    "AZURE_STORAGE_ACCOUNT_NAME": "azure_storage_account_name",
    "AZURE_STORAGE_ACCOUNT_KEY": "azure_storage_account_key",
    "AZURE_STORAGE_SAS_TOKEN": "azure_storage_sas_token",
    "AZURE_CLIENT_ID": "azure_client_id",
    "AZURE_CLIENT_SECRET": "azure_client_secret",
    "AZURE_TENANT_ID": "azure_tenant_id",
}
_GOOGLE_KEYS = ("GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_APPLICATION_CREDENTIALS")

FILES_BELOW = "file:///mnt/"
_TENANT_SCHEMES = ("s3", "gs", "az", "http", "https")
_METADATA_HOSTS = re.compile(r"169\.254\.|\[?fe80:|\[?fd00:ec2:|metadata(\.google\.internal)?\.?$", re.IGNORECASE)


def place(url: str, endpoint: str | None, region: str | None) -> dict[str, str]:
    """Options that say where the store is; none where its URL says it."""
    scheme = url.partition("://")[0].lower()
    options: dict[str, str] = {}
    if endpoint and scheme in ("s3", "gs", "az"):
        options["google_base_url" if scheme == "gs" else "endpoint"] = endpoint
        if endpoint.startswith("http://"):
            options["allow_http"] = "true"
    if region and scheme == "s3":
        options["region"] = region
    return options


def with_secret(url: str, endpoint: str | None, region: str | None, secret: Mapping[str, str]) -> dict[str, str]:
    """The same with credentials; what the data set says goes before what the secret says. ConfigError names the key of
    the secret that is missing or wrong."""
    scheme = url.partition("://")[0].lower()
    values = {name: value.strip() for name, value in secret.items()}  # made with echo, a value ends in a newline
    if scheme == "s3":
        found = {option: values[name] for name, option in _S3.items() if values.get(name)}
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            if _S3[name] not in found:
                raise ConfigError(f"it has no key {name}")
        given = found.pop("endpoint", None)
        if given is not None and (wrong := refusal_of_endpoint(given)):
            raise ConfigError(f"AWS_ENDPOINT_URL: {wrong}")
        return found | place(url, endpoint or given, region or found.get("region"))
    if scheme == "gs":
        return {"google_service_account_key": _google_key(values)} | place(url, endpoint, region)
    if scheme == "az":
        found = {option: values[name] for name, option in _AZURE.items() if values.get(name)}
        if not found:
            raise ConfigError(f"it has none of the keys {', '.join(_AZURE)}")
        return found | place(url, endpoint, region)
    raise ConfigError(f"{scheme}: only s3, gs and az take credentials")


def refusal(url: str) -> str:
    """Why a data set of a tenant may not have this URL; '' when it may."""
    scheme, _, rest = url.partition("://")
    if scheme == "file":
        below = url.startswith(FILES_BELOW) and not {".", ".."} & set(url.split("/"))
        return "" if below else f"files must lie below {FILES_BELOW}"
    if scheme not in _TENANT_SCHEMES:
        return f"the scheme is none of {', '.join(_TENANT_SCHEMES)} and file"
    host = rest.partition("/")[0]
    if "@" in host:
        return "no user or password belongs into a URL"
    if scheme in ("http", "https") and _METADATA_HOSTS.match(host.partition(":")[0] if host[:1] != "[" else host):
        return "that is the node's own metadata service"
    return ""


def refusal_of_endpoint(endpoint: str) -> str:
    """The same for the URL of an object store."""
    if not endpoint.startswith(("http://", "https://")):
        return "it is not an http(s) URL"
    try:
        urlsplit(endpoint)
    except ValueError:
        return "it is not a URL"
    return refusal(endpoint)


def _google_key(values: Mapping[str, str]) -> str:
    """The JSON of a service account."""
    for name in _GOOGLE_KEYS:
        if values.get(name):
            try:
                key: Any = json.loads(values[name])
            except ValueError:
                key = None
            if not isinstance(key, dict) or not isinstance(key.get("private_key"), str):
                raise ConfigError(f"{name} is not the JSON key of a service account")
            return values[name]
    raise ConfigError(f"it has no key {_GOOGLE_KEYS[0]}")
