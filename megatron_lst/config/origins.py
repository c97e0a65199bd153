"""A resolved configuration with the place that each value is from: file and line, command line or default."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from megatron_lst.config.load import dump_yaml, set_at, to_plain

DEFAULT = "default"


class Origin(NamedTuple):
    """One key: its dotted name, its value as YAML writes it, and where that was set."""

    key: str
    value: Any
    place: str


def origins(resolved: Any, values: Mapping[str, Any]) -> Iterator[Origin]:
    """Every key of a built configuration; a list, and a mapping that people name themselves, is one value.

    Args:
        resolved: the dataclass.
        values: what it was built from, as `read_yaml` and `merge` give it.
    """
    root = type(resolved)

    def walk(part: Any, prefix: str) -> Iterator[Origin]:
        for field in dataclasses.fields(part):
            value, key = getattr(part, field.name), f"{prefix}{field.name}"
            if dataclasses.is_dataclass(value):
                yield from walk(value, f"{key}.")
            else:
                yield Origin(key, to_plain(value), set_at(root, values, key) or DEFAULT)

    return walk(resolved, "")


def as_yaml(found: list[Origin]) -> str:
    """YAML that builds the same configuration, with each value's place beside it."""
    lines: list[tuple[str, str]] = []
    open_parts: list[str] = []
    for key, value, place in found:
        *parts, name = key.split(".")
        common = 0
        while common < min(len(parts), len(open_parts)) and parts[common] == open_parts[common]:
            common += 1
        lines += [("  " * depth + f"{parts[depth]}:", "") for depth in range(common, len(parts))]
        open_parts = parts
        if isinstance(value, list | dict):  # on the line of its key
            written = f"{name}: {dump_yaml(value, flow=True).strip()}"
        else:
            written = dump_yaml({name: value}).strip()
        lines.append(("  " * len(parts) + written, place))
    width = min(60, max((len(text) for text, place in lines if place), default=0))
    return "\n".join(f"{text:<{width}}  # {place}" if place else text for text, place in lines) + "\n"
