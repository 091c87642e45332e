"""Configs are frozen dataclasses, equal to plain dicts, and never code.

    config <-> dict          `Config.from_dict(config.to_dict()) == config`
    "a.b=3"  -> {"a.b": 3}   :func:`parse_overrides`
    replace(**{"a.b": 3})    dotted keys reach into nested configs

Unknown keys, wrong types and impossible values raise :class:`ConfigError` with the near matches. A value is data:
numbers, strings, booleans, None, and lists of them; nothing in a config can name a module, a class or a function.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from typing import Any, TypeVar

from orrery.core.errors import ConfigError, suggest

C = TypeVar("C", bound="Config")
LARGEST_INT = 2**40  # bounds every integer of a config: a length or size beyond it is a mistake, not a wish


class Config:
    """Base of all configs: subclasses are `@dataclass(frozen=True, kw_only=True)`."""

    NOUN = "a mapping of settings"  # what error messages call a value of this type

    def to_dict(self) -> dict[str, Any]:
        """Nested plain dict of every field, tuples as lists."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls: type[C], data: dict[str, Any], where: str = "") -> C:
        """Build from a dict. `where` is the dotted path that error messages name.

        Raises:
            ConfigError: on an unknown key, a missing one, or a value of the wrong type.
        """
        if not isinstance(data, dict):
            raise ConfigError(f"{where or cls.__name__} must be a mapping of settings, not {type(data).__name__}")
        known: dict[str, Any] = field_types(cls)  # type: ignore[arg-type]
        for key in data:
            if key not in known:
                raise ConfigError(f"unknown setting '{_join(where, key)}'.{suggest(key, known)} Known: {', '.join(sorted(known))}")
        values = {key: _coerce(value, known[key], _join(where, key)) for key, value in data.items()}
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in values and _required(f)]  # type: ignore[arg-type]
        if missing:
            raise ConfigError(f"missing setting{'s' if len(missing) > 1 else ''} {', '.join(_join(where, m) for m in missing)}")
        return cls(**values)

    def replace(self: C, **changes: Any) -> C:
        """A copy with some fields changed; `replace(**{"mixer.heads": 8})` reaches into nested configs.

        In a mapping that is kept as it comes (settings of a model that is built later) the rest of a path is one key, dots and all,
        unless a mapping stands at its first part.
        """
        return type(self).from_dict(apply_overrides(self.to_dict(), changes, _mappings(type(self))))  # type: ignore[arg-type]

    def __post_init__(self) -> None:
        """Subclasses check what types cannot say; they call :func:`require`."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def apply_overrides(data: dict[str, Any], changes: dict[str, Any], free: frozenset[str] = frozenset()) -> dict[str, Any]:
    """A deep copy of `data` with dotted `changes` put in; creates no unknown branches, and dotted keys only in the mappings `free`."""
    result = json.loads(json.dumps(data))
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        here = result
        for depth, part in enumerate(path):
            if not isinstance(here.get(part), dict):
                if any(".".join(path[:inside]) in free for inside in range(depth + 1)):
                    last = ".".join((*path[depth:], last))
                    break
                place = ".".join(path[: depth + 1])
                raise ConfigError(f"unknown setting '{dotted}': '{place}' holds no further settings.{suggest(part, here)}")
            here = here[part]
        here[last] = _plain(value)
    return result


def parse_overrides(items: list[str] | tuple[str, ...]) -> dict[str, Any]:
    """`["mixer.heads=4", "lr=1e-3", "canon=abcd"]` -> `{"mixer.heads": 4, "lr": 0.001, "canon": "abcd"}`."""
    result: dict[str, Any] = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"'{item}' is not of the form key=value")
        result[key.strip()] = parse_value(value.strip())
    return result


def parse_value(text: str) -> Any:
    """A literal (number, true/false, none, quoted string, list); anything else is the string itself."""
    lowered = text.lower()
    if lowered in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(lowered)
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, (int, float, str, list, tuple)) else text


def config_hash(value: Any) -> str:
    """Twelve hex digits of the SHA-256 of the canonical JSON of a config or plain value."""
    canonical = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Field name -> resolved type of a config class."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@functools.cache
def _mappings(cls: type) -> frozenset[str]:
    """Dotted paths of the fields of a config class, and of the configs in it, that hold mappings as they come."""
    found = set()
    for name, kind in field_types(cls).items():
        if typing.get_origin(kind) is dict or kind is dict:
            found.add(name)
        elif isinstance(kind, type) and issubclass(kind, Config):
            found |= {f"{name}.{inner}" for inner in _mappings(kind)}  # type: ignore[arg-type]
    return frozenset(found)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else str(key)


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _coerce(value: Any, kind: Any, where: str) -> Any:
    """`value` as `kind`, or a ConfigError that names the place and both types."""
    origin = typing.get_origin(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(value, typing.get_args(kind), where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong(value, "a list", where)
        inner = typing.get_args(kind)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_coerce(item, inner[0], f"{where}[{i}]") for i, item in enumerate(value))
        if len(inner) != len(value):
            raise _wrong(value, f"a list of {len(inner)}", where)
        return tuple(_coerce(item, each, f"{where}[{i}]") for i, (item, each) in enumerate(zip(value, inner, strict=True)))
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise _wrong(value, "a mapping", where)
        return dict(value)
    if isinstance(kind, type) and issubclass(kind, Config):
        return value if isinstance(value, kind) else kind.from_dict(value, where)
    return _coerce_scalar(value, kind, where)


_NOUNS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _coerce_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    config = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Config)), None)
    errors = []
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return _coerce(value, kind, where)
        except ConfigError as error:
            errors.append(error)
    if config is None or isinstance(value, (str, dict)):
        raise errors[0]
    others = [_NOUNS.get(kind, "a list") for kind in kinds if kind not in (config, type(None))]
    raise _wrong(value, " or ".join([*others, config.NOUN]), where)


def _coerce_scalar(value: Any, kind: Any, where: str) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise _wrong(value, _NOUNS[bool], where)
    if kind is int:
        if isinstance(value, float) and value.is_integer() and abs(value) < LARGEST_INT:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            if abs(value) > LARGEST_INT:
                raise ConfigError(f"setting '{where}' is {value}, beyond the largest allowed {LARGEST_INT}")
            return value
        raise _wrong(value, "a whole number", where)
    if kind is float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value):
            return float(value)
        raise _wrong(value, "a number", where)
    if kind is str:
        if isinstance(value, str):
            return value
        raise _wrong(value, "text", where)
    raise TypeError(f"config field '{where}' has a type that configs do not carry: {kind}")


def _wrong(value: Any, wanted: str, where: str) -> ConfigError:
    return ConfigError(f"setting '{where}' must be {wanted}, not {value!r}")
