"""From plain data, as TOML and JSON give it, to frozen structs; errors say which field and what is allowed.

msgspec checks each leaf by its type; what it cannot do is done here: the whole path in the error, a guess at the field
that was meant, and sizes as people write them. A field is a size when its name says bytes.
"""

import difflib
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import msgspec

from shoal_core.errors import ConfigError

S = TypeVar("S", bound=msgspec.Struct)

_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:B?|([KMGT])iB?)")
_SIZE_FORMS = 'a number of bytes or text like "512MiB" or "8GiB"'


def parse_size(value: object) -> int | None:
    """Bytes; None when it is no size. Units are binary: KiB MiB GiB TiB, or Ki Mi Gi Ti as in Kubernetes."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    return int(Decimal(match[1]) * _UNITS[match[2] or ""]) if match else None


def build(kind: type[S], data: object, path: str = "") -> S:
    """A struct from a mapping; ConfigError names the first field that is wrong."""
    if not isinstance(data, Mapping):
        raise ConfigError(f"{path or 'the configuration'}: expected a table, got {_shown(data)}")
    given = cast("Mapping[Any, object]", data)
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for name in given:
        if name not in fields:
            raise ConfigError(f"{join(path, name)}: unknown field{_hint(str(name), list(fields))}")
    values: dict[str, object] = {}
    for name, field in fields.items():
        if name in given:
            values[name] = _value(field.type, given[name], join(path, name))
        elif field.required:
            raise ConfigError(f"{join(path, name)}: this field is required")
    return kind(**values)


def join(path: str, name: object) -> str:
    """The path of a field, as TOML writes it."""
    text = str(name) if re.fullmatch(r"[A-Za-z0-9_-]+", str(name)) else f'"{name}"'
    return f"{path}.{text}" if path else text


def _value(kind: Any, value: object, path: str) -> object:
    arguments = get_args(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return build(kind, value, path)
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}: expected a list, got {_shown(value)}")
        items = cast("list[object]", value)
        return tuple(_value(arguments[0], item, f"{path}[{place}]") for place, item in enumerate(items))
    if get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a table, got {_shown(value)}")
        table = cast("Mapping[Any, object]", value)
        return {_value(str, name, path): _value(arguments[1], item, join(path, name)) for name, item in table.items()}
    if get_origin(kind) is Literal and value not in arguments:
        hint = _hint(str(value), [str(argument) for argument in arguments])
        raise ConfigError(f"{path}: {_shown(value)} is not allowed{hint}")
    return _leaf(kind, value, path)


def _leaf(kind: Any, value: object, path: str) -> object:
    if "bytes" in path.rpartition(".")[2] and int in (kind, *get_args(kind)) and value is not None:
        size = parse_size(value)
        if size is None:
            raise ConfigError(f"{path}: expected {_SIZE_FORMS}, got {_shown(value)}")
        value = size
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text = str(error).replace("`", "")
        raise ConfigError(f"{path}: {text[0].lower()}{text[1:]} (it is {_shown(value)})") from None


def _hint(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.6)
    guess = f"; did you mean {near[0]}?" if near else ""
    return guess if near and len(known) > 5 else f"{guess} (allowed: {', '.join(known)})"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
