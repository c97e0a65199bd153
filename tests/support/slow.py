"""Tables of cases of which the fast suite runs those that find most; `make test-all` runs every one."""

from collections.abc import Iterable
from typing import Any

import pytest


def with_slow(names: Iterable[str], *slow: str) -> list[Any]:
    """The names as parameters; those in `slow` carry the mark of that name."""
    every = list(names)
    assert set(slow) <= set(every), f"no such cases: {set(slow) - set(every)}"
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in every]
