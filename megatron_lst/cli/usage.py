"""Mistakes in the words of a command line, as one sentence with the cure, like every other mistake."""

from typing import Any

import typer

USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
"""The base of what typer raises on a command line that it cannot read, whether it brings its own click or not."""


def exit_code(error: Exception) -> int:
    """2 for everything that a person can mend."""
    return int(getattr(error, "exit_code", 2))


def sentence(error: Exception) -> str:
    """What is wrong, and what would be right.

    Args:
        error: a `USAGE_ERROR`.
    """
    ctx: Any = getattr(error, "ctx", None)
    said = str(error.format_message() if hasattr(error, "format_message") else error)  # type: ignore[attr-defined]
    said = " ".join(said.split())
    if ctx is None:
        return said
    kind, command, parameters = type(error).__name__, ctx.command_path, ctx.command.params
    if kind == "MissingParameter":
        arguments = [p.name.upper() for p in parameters if p.param_type_name == "argument" and p.required]
        missing: Any = getattr(error, "param", None)
        name = missing.name.upper() if missing in parameters and missing.name.upper() in arguments else said
        return f"{command}: {name} is missing; write {' '.join([command, *arguments])} ({command} --help says more)"
    if kind == "NoSuchOption" and any(parameter.name == "overrides" for parameter in parameters):
        option = str(getattr(error, "option_name", ""))
        close = [p for p in getattr(error, "possibilities", None) or () if p != "--help"]
        if close:
            return f"{command}: no option {option}; did you mean {close[0]}?"
        key, _, value = option.lstrip("-").partition("=")
        return (
            f"{command}: no option {option}; a key of the configuration is written without dashes, with its section: "
            f"{key if '.' in key else f'training.{key}'}={value or 'VALUE'}"
        )
    if said.endswith("?"):
        return f"{command}: {said}"
    return f"{command}: {said.rstrip('.')}; {command} --help says what there is"
