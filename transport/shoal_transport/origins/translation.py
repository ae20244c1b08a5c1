"""What obstore says went wrong, in Shoal's words: one line that names the object and the host, and no secret.

obstore's texts are long (a Rust debug dump) and may quote the server's body, where S3 repeats the access key and the
string that was signed, or a URL with a signed query. So nothing of them is passed on but a few known facts: status,
S3's error code, how often it was tried, and the operating system's word for a failed connection.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from obstore import exceptions

from shoal_core.errors import BadRequest, ConfigError, Forbidden, NotFound, ObjectChanged, OriginError, ShoalError
from shoal_transport.origins.interface import shown

_REQUEST = re.compile(r"Error performing [A-Z]+ (\S+) in ")
_RETRIES = re.compile(r"after (\d+) retries")
_STATUS = re.compile(r"status code: (\d{3}[A-Za-z \-]*)")
_S3_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_CAUSE = re.compile(r'(?:message|error): "([^"\n]{1,200})"')
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
_INSTANCE_METADATA_HOSTS = ("169.254.169.254", "metadata.google.internal", "metadata")
_NO_SUCH_FILE = {"2", "20", "36", "40"}  # ENOENT, ENOTDIR, ENAMETOOLONG, ELOOP: no object can be there
_DENIED = {"1", "13"}  # EPERM, EACCES


def translated(error: Exception, url: str, host: str) -> ShoalError:
    """The error to raise instead. `host` is where the store lives, for texts in which obstore does not name it."""
    text, name = str(error), shown(url)
    status = _status(text)
    os_error = _OS_ERROR.search(text.partition("\n")[0])
    code = os_error.group(1) if os_error else ""
    if isinstance(error, FileNotFoundError) or code in _NO_SUCH_FILE or status == "404":
        return NotFound(f"{name}: no such object at {host}" + (f" ({_reason(text)})" if status else ""))
    # Listings report every status as a general error, so the status itself counts too.
    denied = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
    if isinstance(error, denied) or code in _DENIED or status in ("401", "403"):
        return Forbidden(f"{name}: {host} refused access ({_reason(text)})")
    if isinstance(error, (exceptions.PreconditionError, exceptions.NotModifiedError)):
        return ObjectChanged(f"{name}: changed at the origin since it was opened")
    if isinstance(error, exceptions.NotSupportedError) and "Range" in text:
        return OriginError(f"{name}: {host} ignores range requests, so parts of the object cannot be read")
    if isinstance(error, (exceptions.InvalidPathError, ValueError)):
        return BadRequest(f"{name}: {_first_line(text)}")
    return OriginError(f"{name}: {_unreachable(text, host)}")


def unusable(error: Exception, url: str) -> ConfigError:
    """For a store that could not even be made: some option is unknown, missing or malformed."""
    return ConfigError(f"options for {shown(url)}: {_first_line(str(error))}")


def _unreachable(text: str, host: str) -> str:
    host = _request_host(text) or host
    if host in _INSTANCE_METADATA_HOSTS:
        return f"no credentials for the store: none configured, and {host} gave none (skip_signature reads without)"
    if "IncompleteBody" in text or "UnexpectedEof" in text:
        return f"short read: {host} sent fewer bytes than it promised"
    if "UnexpectedRange" in text:
        return f"{host} answered with another range than was asked for"
    retries = _RETRIES.search(text)
    after = f", after {retries.group(1)} retries" if retries else ""
    return f"request to {host} failed: {_reason(text)}{after}"


def _status(text: str) -> str:
    status = _STATUS.search(text)
    # What an instance's metadata service answers says nothing about the object.
    return status.group(1)[:3] if status and _request_host(text) not in _INSTANCE_METADATA_HOSTS else ""


def _request_host(text: str) -> str:
    request = _REQUEST.search(text)
    return urlsplit(request.group(1)).netloc.rpartition("@")[2] if request else ""


def _reason(text: str) -> str:
    """Status and S3 code where a server answered; else the innermost cause, such as 'Connection refused'."""
    status = _STATUS.search(text)
    if status:
        s3_code = _S3_CODE.search(text)
        return status.group(1).strip() + (f", {s3_code.group(1)}" if s3_code else "")
    causes = _CAUSE.findall(text)
    if causes:
        return str(causes[-1])
    if "TimedOut" in text or "kind: Timeout" in text:
        return "timed out"
    return _first_line(text).rpartition(" - ")[2]


def _first_line(text: str) -> str:
    return shown(text.partition("\n")[0].rstrip())[:300]
