"""What a data set of format `tokens` may be told, and how that makes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from shoal.torch.formats.documents import Filter
from shoal.torch.formats.listing import Listing
from shoal.torch.formats.token_files import TokenFiles
from shoal.torch.formats.tokenised import TokenisedText, Tokenizer
from shoal.torch.formats.tokens import Tokens
from shoal_core.errors import BadRequest

if TYPE_CHECKING:
    from shoal.client import Client


class TokenOptions(TypedDict, total=False):
    """What a data set of format `tokens` may be told."""

    sequence_length: int
    """L: a sample has L + 1 tokens. 2048 when it is not given."""
    positions: bool
    """Samples have `positions`, too: of each token in its document."""
    dtype: str
    """Of token files: `uint16` (when it is not given) or `uint32`, little-endian."""
    tokenizer: Tokenizer
    """Files are text: `.jsonl`, or else a document each. They are tokenised once."""
    text_field: str
    """Of a line of a `.jsonl` file: where its text is. `text` when it is not given."""
    end: int
    """The token that ends a document: in token files looked for, to text appended."""
    filter: Filter
    """Which documents are kept."""


SEQUENCE_LENGTH_DEFAULT = 2048


def check(format_name: str, options: TokenOptions) -> None:
    """TypeError for what is no option, BadRequest for one of another format or of another kind of files."""
    if unknown := sorted(set(options) - set(TokenOptions.__annotations__)):
        raise TypeError(f"Dataset has no option {unknown[0]!r}")
    if options and format_name != "tokens":
        raise BadRequest(f"{next(iter(options))}: is an option of format 'tokens', not of {format_name!r}")
    if "tokenizer" in options and "dtype" in options:
        raise BadRequest("dtype: is of files of tokens; text that is tokenised has none")
    if "tokenizer" not in options and "text_field" in options:
        raise BadRequest("text_field: is of text; give a tokenizer, too")


def suffixes(options: TokenOptions) -> Sequence[str] | None:
    """The files that are looked for when nobody says which."""
    return None if "tokenizer" in options else (".bin",)


def made(client: Client, listing: Listing, options: TokenOptions) -> Tokens:
    """Builds what is missing of tokens and indexes."""
    chosen, positions, end = options.get("filter"), options.get("positions", False), options.get("end")
    wants_documents = positions or chosen is not None
    if (tokenizer := options.get("tokenizer")) is not None:
        text_field = options.get("text_field", "text")
        source = TokenisedText(client, listing, tokenizer, end, text_field, documents=wants_documents)
        found = source.documents() if wants_documents else None
    else:
        source = TokenFiles(listing, options.get("dtype", "uint16"), end)
        found = source.documents(client) if wants_documents else None
    length = options.get("sequence_length", SEQUENCE_LENGTH_DEFAULT)
    return Tokens(client, listing.url, source, found, length, positions=positions, chosen=chosen)
