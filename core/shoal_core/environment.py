"""Which environment variables decide what an origin answers, and a digest to compare two processes' by.

An embedded node keeps the environment of whoever started it. A later client with other credentials or another endpoint
would read with the first one's, so both sides compare digests and the client says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

PREFIXES = ("AWS_", "GOOGLE_", "AZURE_")


def digest(variables: Mapping[str, str]) -> str:
    """16 hexadecimal digits over the origin settings in `variables`; secrets cannot be read back from it."""
    state = hashlib.blake2b(digest_size=8)
    for name in sorted(variables):
        if name.startswith(PREFIXES):
            state.update(f"{name}={variables[name]}\0".encode("utf-8", "surrogateescape"))
    return state.hexdigest()
