"""What options of several commands have in common. Every number on the command line has a range."""

import math

import typer


def finite(value: float | None) -> float | None:
    """A callback: nan lies in every range that `min` and `max` can say, and inf in those without an end."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number to compute with")
    return value
