"""Strict YAML into dataclasses: unknown keys, wrong types and duplicate keys are refused with the nearest right one.

A file may name others in `base:`; later files win, then `key=value` overrides, whose type says how they are read: text
as it stands, numbers in decimal notation, lists and mappings as YAML. Paths count from the file that names them.
"""

import contextlib
import dataclasses
import difflib
import math
import re
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import yaml

from megatron_lst.config.hints import hint
from megatron_lst.config.paths import Spot, from_file, is_runs_own
from megatron_lst.config.shipped import find
from megatron_lst.config.unreadable import cannot_read, not_yaml
from megatron_lst.errors import UserError
from megatron_lst.values import Place

T = TypeVar("T")


class Located(dict[Any, Any]):
    """Keys and values that know where they were written, for messages.

    Attributes:
        places: key -> the file and line, or the override, that its value is from.
    """

    def __init__(self, values: Mapping[Any, Any], places: Mapping[Any, str]) -> None:
        super().__init__(values)
        self.places = dict(places)


def _places(values: Mapping[Any, Any]) -> dict[Any, str]:
    return values.places if isinstance(values, Located) else {}


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_WHOLE = re.compile(r"^[-+]?(0|[1-9][0-9]*|[1-9][0-9]{0,2}(_[0-9]{3})+)$")
_DECIMAL = re.compile(
    r"^([-+]?([0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|\.[0-9]+([eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(inf|Inf|INF))"
    r"|\.(nan|NaN|NAN))$"
)
_NOTATION = "numbers are written in decimal, such as 10, 25_000, 0.5 or 4e-4"


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, and takes for a number what everybody reads as that number: 1e-3 is one;
    010 (octal in YAML 1.1), 1:30 (90 there), 0x10 and dates stay text."""

    folder: str | None = None

    yaml_implicit_resolvers: ClassVar = {  # type: ignore[misc]
        first: [(tag, pattern) for tag, pattern in found if tag not in (_INT, _FLOAT, "tag:yaml.org,2002:timestamp")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


class _StrictDumper(yaml.SafeDumper):
    """SafeDumper that quotes every text that `_StrictLoader` would take for something else."""


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float | str:
    text = node.value
    if _WHOLE.match(text):
        try:
            return int(text.replace("_", ""))
        except ValueError:  # thousands of digits: Python refuses to read them, and no key takes them
            return str(text)
    if _DECIMAL.match(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    raise yaml.constructor.ConstructorError(None, None, f"{text!r} is not a number; {_NOTATION}", node.start_mark)


for _tag, _pattern in ((_INT, _WHOLE), (_FLOAT, _DECIMAL)):
    _StrictLoader.add_constructor(_tag, _number)
    for _class in (_StrictLoader, _StrictDumper):
        _class.add_implicit_resolver(_tag, _pattern, list("-+.0123456789"))


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, Any] = {}
    places: dict[Any, str] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        place = Spot(f"{key_node.start_mark.name}, line {key_node.start_mark.line + 1}", loader.folder)
        if not isinstance(key, (str, int, float, bool)):
            raise UserError(f"{place}: a key must be a word, got {key!r}")
        if key in seen:
            raise UserError(f"{place}: the key {key!r} stands there twice")
        seen[key], places[key] = loader.construct_object(value_node, deep=True), place
    return Located(seen, places)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str, name: str = "<string>", folder: str | None = None) -> Any:
    """Parse YAML safely.

    Args:
        folder: from which its relative paths count; None: the current folder.

    Raises:
        UserError: not YAML, or a duplicate key; names the file and the line.
    """
    loader = _StrictLoader(text)
    loader.name, loader.folder = name, folder
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(not_yaml(name, error)) from None
    finally:
        loader.dispose()


def read_yaml(path: str | Path, at: str | Path | None = None, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read one file and the files that it names in `base:`, merged.

    Args:
        at: the path at which the file counts as standing, and its bases beside it, where that is another one: relative
            paths count from there. A configuration that comes with the package stands in `configs/`.
        above: files that led here, so that a circle is refused.
    """
    if at is None and not above and (shipped := find(path)):
        path, at = shipped
    path, at = Path(path), Path(path if at is None else at)
    if path.resolve() in above:
        raise UserError(f"{path}: its `base:` leads back to itself")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"), str(path), str(at.parent))
    except OSError as error:
        raise UserError(cannot_read(path, error, above[-1] if above else None)) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text in UTF-8") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, got a {type(content).__name__}")
    bases = content.pop("base", [])
    merged: dict[str, Any] = {}
    if not isinstance(bases, (str, list)) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: base: expected a file or a list of files, got {bases!r}")
    for base in [bases] if isinstance(bases, str) else bases:
        beside = path.parent / base, at.parent / base
        found = beside if beside[0].exists() else find(base) or beside  # one that comes with the package
        merged = merge(merged, read_yaml(*found, (*above, path.resolve())))
    return merge(merged, content)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge of mappings; lists and scalars of `above` replace those of `below`."""
    result = Located(below, _places(below) | _places(above))
    for key, value in above.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def parse_overrides(overrides: Iterable[str], cls: type) -> dict[str, Any]:
    """`["parallel.tensor=2"]` -> {"parallel": {"tensor": 2}}, read as the keys of `cls` want it.

    A text is taken as it stands, `#`, `~` and blanks included; `null` is null where the key takes it; a list or a
    mapping is YAML.

    Raises:
        UserError: no `key=value`, bytes that are not text, or not YAML.
    """
    result: dict[str, Any] = {}
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise UserError(f"override {item!r}: expected key=value, such as parallel.tensor=2")
        try:
            item.encode()
        except UnicodeEncodeError:
            raise UserError(f"override {item!r}: not text in UTF-8") from None
        nested = _read_override(_kind_of(cls, key.split(".")), text, f"override {item!r}")
        for part in reversed(key.split(".")):
            nested = Located({part: nested}, {part: f"override {item!r}"})
        result = merge(result, nested)
    return result


def _kind_of(cls: Any, parts: list[str]) -> Any:
    """The type of a key; text where there is no such key, which `build` refuses by name."""
    for part in parts:
        if typing.get_origin(cls) is dict:
            cls = typing.get_args(cls)[1]
            continue
        hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        cls = hints.get(part, str)
    return cls


def _read_override(kind: Any, text: str, place: str) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if text == "null":
            return None
        kind = next(inner for inner in typing.get_args(kind) if inner is not type(None))
    if kind is str or typing.get_origin(kind) is typing.Literal:
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
            raise UserError(f"{place}: the text is taken as it stands; leave out the quotation marks around it")
        return text
    if kind in (int, float, bool):
        tag = _StrictLoader("").resolve(yaml.ScalarNode, text, (True, False))
        return text if tag.endswith(":null") else _StrictLoader("").construct_object(yaml.ScalarNode(tag, text))
    return parse_yaml(text, place)


def build(cls: type[T], values: Mapping[str, Any], where: str = "", place: str = "") -> T:
    """Build the dataclass `cls` from plain values, strictly.

    Args:
        where: dotted prefix for messages.
        place: file and line of the values, where they do not know it themselves.

    Raises:
        UserError: names the place (where the values know it), the key, what was found and what would be right. What
            the dataclass itself refuses is told with the place of every key that it names.
    """
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    places, of_run = _places(values), cls.__module__.startswith("megatron_lst.")
    for key in values:
        if key not in fields:
            raise _mistake(places.get(key, place), f"{prefix}{key}: unknown key; {hint(key, prefix, fields, of_run)}")
    converted = {
        key: _convert(hints[key], value, f"{prefix}{key}", places.get(key, place)) for key, value in values.items()
    }
    required = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in converted]
    if missing:
        begins = next(iter(places.values()), place)
        raise _mistake(begins, f"{where or cls.__name__}: missing {', '.join(missing)}")
    with telling_places(cls, values, prefix):
        return cls(**converted)


@contextlib.contextmanager
def telling_places(cls: type, values: Mapping[str, Any], prefix: str = "") -> Iterator[None]:
    """Adds to a `UserError` where each key that it names was set: file and line, override, or default.

    Args:
        cls: the dataclass that `values` are of.
        prefix: what stands before the keys of `cls` in messages, such as `model.`.
    """
    try:
        yield
    except UserError as error:
        found = dict.fromkeys(re.findall(r"\b\w+(?:\.\w+)+", str(error)))
        named = [key.removeprefix(prefix) for key in found if key.startswith(prefix)]
        places = {key: place for key in named if (place := set_at(cls, values, key))}
        raise UserError(
            "\n".join([str(error), *(f"  {prefix}{key}: {place}" for key, place in places.items())])
        ) from None


def set_at(cls: Any, values: Mapping[str, Any], key: str) -> str:
    """Where `a.b` was set; empty: it is not a key of `cls`, or the values do not know."""
    place = ""
    for part in key.split("."):
        hints = typing.get_type_hints(cls) if dataclasses.is_dataclass(cls) else {}
        if part not in hints:
            return ""
        place = _places(values).get(part, "") if part in values else "default"
        cls, values = hints[part], values.get(part, {})
    return place


def _mistake(place: str, message: str) -> UserError:
    return UserError(f"{place}: {message}" if place else message)


def _convert(kind: Any, value: Any, where: str, place: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)

    def refuse(expected: str) -> typing.NoReturn:
        raise _mistake(place, f"{where}: expected {expected}, got {value!r}")

    if origin is Annotated:
        written = value = _convert(args[0], value, where, place)
        for rule in args[1:]:
            try:
                value = rule.settle(value)
            except ValueError as error:
                raise _mistake(place, f"{where}: {error}") from None
            if isinstance(rule, Place):
                value = from_file(rule, written, value, place)
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        inner = [a for a in args if a is not type(None)]
        if len(inner) == 1:
            return _convert(inner[0], value, where, place)
        for candidate in inner:
            try:
                return _convert(candidate, value, where, place)
            except UserError:
                continue
        refuse(" or ".join(str(a) for a in inner))
    if origin is typing.Literal:
        if value not in args or isinstance(value, bool) != isinstance(args[0], bool):
            close = difflib.get_close_matches(str(value), [str(a) for a in args], n=1)
            refuse(f"one of {', '.join(map(str, args))}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        return value
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            refuse("a list")
        return origin(_convert(args[0], item, f"{where}[{i}]", place) for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            refuse("keys and values")
        places = _places(value)
        return {k: _convert(args[1], v, f"{where}.{k}", places.get(k, place)) for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, Mapping):
            refuse("keys and values")
        return build(kind, value, where, place)  # type: ignore[arg-type]
    if kind is Any:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) <= sys.float_info.max else math.inf if value > 0 else -math.inf
    if kind is int and isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    expected = names.get(kind, getattr(kind, "__name__", str(kind)))
    other = kind in (int, float) and isinstance(value, str) and any(map(str.isdigit, value))
    return refuse(f"{expected} ({_NOTATION})" if other else expected)


def to_plain(config: Any) -> Any:
    """Dataclasses, tuples and so on to what YAML writes; `build` reads it back to an equal object."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, (list, tuple)):
        return [to_plain(item) for item in config]
    if isinstance(config, Mapping):
        return {key: to_plain(value) for key, value in config.items()}
    return str(config) if isinstance(config, str) else config


def dump_yaml(config: Any, flow: bool = False) -> str:
    """YAML that the strict loader reads back; `flow`: on one line."""
    style: dict[str, Any] = {"default_flow_style": True, "width": math.inf} if flow else {}
    return str(yaml.dump(to_plain(config), Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, **style))


def load_config(
    path: str | Path, overrides: Iterable[str] = (), over: Iterable[str | Path] = (), at: str | Path | None = None
) -> Any:
    """A run's configuration from a file and `key=value` overrides, checked for contradictions.

    Args:
        over: more files, each over the ones before and below the overrides.
        at: see `read_yaml`.

    Raises:
        UserError: names the key, and where it was set.
    """
    from megatron_lst.config.checks import check
    from megatron_lst.config.schema import Config

    values = read_yaml(path, at)
    if at is None and is_runs_own(Path(path), values):
        values = read_run(Path(path).parent)
    for more in (*map(read_yaml, over), parse_overrides(overrides, Config)):
        values = merge(values, more)
    config = build(Config, values)
    with telling_places(Config, values):
        check(config)
    return config


def read_run(folder: str | Path) -> dict[str, Any]:
    """What the `config.yaml` of a run holds. Its paths are absolute; those of an earlier version count from the current
    folder, in which the run was started."""
    return read_yaml(Path(folder) / "config.yaml", at="config.yaml")


def load_run(folder: str | Path) -> Any:
    """The configuration of a run, as its folder keeps it. Raises UserError: see `load_config`."""
    return load_config(Path(folder) / "config.yaml", at="config.yaml")
