"""How URLs of the cache are spelled where a library chooses its reader by scheme.

Such a library (WebDataset, MosaicML Streaming) has a table from scheme to reader, in which "s3" is already its own.
So an object at its origin is `shoal+s3://bucket/key` there (likewise gs, az, http, https, file), as in fsspec, and
`shoal://name/path` is in a dataset that was declared with the node. Pure; knows no library.
"""

from __future__ import annotations

from shoal_core.errors import BadRequest

SCHEMES = ("shoal", "shoal+s3", "shoal+gs", "shoal+az", "shoal+http", "shoal+https", "shoal+file")


def node_url(url: str) -> str:
    """The same object in the node's own spelling. BadRequest for a scheme that is none of ours."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        raise BadRequest(
            f"{url}: not a URL of the cache; it begins with one of {', '.join(f'{s}://' for s in SCHEMES)}"
        )
    return url.removeprefix("shoal+")
