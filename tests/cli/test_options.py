"""Every number on the command line has a range, and nan is in none of them."""

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from megatron_lst.cli.app import app
from megatron_lst.cli.options import finite

OWN_CHECKS = ("launch",)
"""Groups whose numbers are refused by the code that uses them (launching/slurm.py, tests/launching)."""


def commands(group: typer.Typer, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Callable[..., Any]]]:
    for command in group.registered_commands:
        yield " ".join((*path, command.name or command.callback.__name__)), command.callback  # type: ignore[union-attr,misc]
    for inner in group.registered_groups:
        yield from commands(inner.typer_instance, (*path, str(inner.name)))  # type: ignore[arg-type]


def numbers(callback: Callable[..., Any]) -> Iterator[tuple[str, type, Any]]:
    """(name, int or float, what typer knows of it) of a command's numbers."""
    hints = typing.get_type_hints(callback, include_extras=True)
    for name in inspect.signature(callback).parameters:
        hint = hints[name]
        base, *extras = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
        kinds = typing.get_args(base) if isinstance(base, types.UnionType) else (base,)
        for kind in {int, float} & set(kinds):
            yield name, kind, next((extra for extra in extras if hasattr(extra, "min")), None)


def test_every_number_has_a_range() -> None:
    found, free = 0, []
    for command, callback in commands(app):
        for name, kind, info in numbers(callback):
            found += 1
            if command.split()[0] in OWN_CHECKS:
                continue
            if info is None or info.min is None or (kind is float and info.callback is not finite):
                free.append(f"{command} {name}")
    assert found > 40
    assert not free, f"give these min= (and floats callback=finite): {free}"


def test_the_check_can_fail() -> None:
    def free(count: int = 3) -> None: ...

    assert [(name, info) for name, _, info in numbers(free)] == [("count", None)]


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "warm"])
def test_what_is_not_in_the_range_is_a_mistake_of_the_user(value: str) -> None:
    result = CliRunner().invoke(app, ["generate", "nowhere", "--temperature", value])
    assert result.exit_code == 2
    assert "--temperature" in result.output
