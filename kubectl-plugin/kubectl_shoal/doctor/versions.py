"""Versions that should be one: this plugin's, the operator's, the nodes', and that of the CRDs."""

from __future__ import annotations

from importlib import metadata, resources

SCHEMA_VERSION = 1
"""Of the definitions that this version of Shoal was written for; they carry it as an annotation."""
SCHEMA_ANNOTATION = "shoal.dev/schema-version"


def own() -> str:
    try:
        return metadata.version("shoal")
    except metadata.PackageNotFoundError:
        pass
    written = resources.files("kubectl_shoal") / "VERSION"  # by tools/plugin-archive, where nothing is installed
    return written.read_text().strip() if written.is_file() else "unknown"


def of_image(image: str) -> str:
    """The tag; '' where a digest says what it is."""
    name, _, digest = image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return "" if digest else tag
