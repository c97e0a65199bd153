"""What a configuration key takes beyond its type, written beside it: `steps: Annotated[int, Range(1)]`.

A rule gives a value as it is used (`settle`), or says why it cannot be; a range stands in the documentation as text.
"""

import math
import os
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated

LARGEST_COUNT = 2**31 - 1
LARGEST_SEED = 2**64 - 1
_NAMED = {LARGEST_COUNT: "2^31 - 1", LARGEST_SEED: "2^64 - 1", 2**62: "2^62", 2**40: "2^40", 2**32 - 1: "2^32 - 1"}


@dataclass(frozen=True)
class Range:
    """The numbers that a key takes; never NaN or infinity.

    Attributes:
        least, most: the ends.
        above, below: the end itself is not taken.
    """

    least: float
    most: float = math.inf
    above: bool = False
    below: bool = False

    def settle(self, value: float) -> float:
        """The number itself.

        Raises:
            ValueError: it is not in the range; says what would be.
        """
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"must be a finite number, got {value}")
        low = value <= self.least if self.above else value < self.least
        high = value >= self.most if self.below else value > self.most
        if low or (high and self.most not in (math.inf, LARGEST_COUNT)):
            raise ValueError(f"must be {self}, got {value}")
        if high:
            raise ValueError(f"must be at most {written(self.most)}, got {value}")
        return value

    def __str__(self) -> str:
        if self.most in (math.inf, LARGEST_COUNT):
            return f"{'above' if self.above else 'at least'} {written(self.least)}"
        if self.above or self.below:
            low, high = "above" if self.above else "at least", "below" if self.below else "at most"
            return f"{low} {written(self.least)} and {high} {written(self.most)}"
        return f"between {written(self.least)} and {written(self.most)}"


def written(end: float) -> str:
    """An end of a range as people write it: `2^31 - 1`, `1,024`, `0.5`."""
    return _NAMED.get(int(end), f"{end:,}" if isinstance(end, int) else f"{end:g}")


STORES = ("s3", "gs")
"""Object stores that data preparation reads and writes: those that pyarrow has file systems for."""


@dataclass(frozen=True)
class Place:
    """A path or URL; `~` at its start and `$NAME` in it are filled in as the configuration is read.

    Attributes:
        optional: empty text is a value of its own.
        names: values that are names of what comes with the project, and no paths.
        hub: `owner/model` may be a name on a model hub.
        stores: schemes of addresses that may stand here, such as s3; None: any, whoever reads it says what it knows.
        local: a path may stand here, and not only an address.
    """

    optional: bool = False
    names: tuple[str, ...] = ()
    hub: bool = False
    stores: tuple[str, ...] | None = None
    local: bool = True

    def settle(self, value: str) -> str:
        """The path as it is used.

        Raises:
            ValueError: says why it is none.
        """
        if not value and not self.optional:
            raise ValueError("must not be empty")
        if "\0" in value:
            raise ValueError(f"no path holds a null character, got {value!r}")
        found = os.path.expanduser(os.path.expandvars(value))
        self._check_address(found)
        if left := re.search(r"\$(\w+|\{\w*\})", found):
            raise ValueError(f"{value!r}: the variable {left[0]} is not set")
        if found.startswith("~"):
            raise ValueError(f"{value!r}: no home folder is known for {found.split('/')[0]}")
        return found

    def _check_address(self, value: str) -> None:
        scheme, sign, _ = value.partition(":/")
        is_address = bool(sign) and (scheme in STORES or "://" in value)
        known = " or ".join(f"{name}://bucket/key" for name in self.stores or ())
        if not self.local and value and not is_address:
            raise ValueError(f"must be an address in a store, {known}, got {value!r}")
        if self.stores is None or not is_address:
            return
        if not known:
            raise ValueError(f"{value!r}: must be a path that every machine sees: this is not kept in an object store")
        if scheme not in self.stores or "://" not in value:
            raise ValueError(f"{value!r}: must be {known}{', or a path' if self.local else ''}")


def hertz(value: float | str | Fraction) -> Fraction:
    """A rate as an exact number: 12.5, "12.5" or "80/3".

    Raises:
        ValueError: not a number above 0.
    """
    try:
        rate = Fraction(value if isinstance(value, Fraction) else str(value).strip())
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if rate <= 0:
        raise ValueError(f"must be a rate above 0 in hertz, such as 12.5 or 80/3, got {value}")
    return rate


@dataclass(frozen=True)
class Hertz:
    """A rate: a number or a fraction."""

    def settle(self, value: float | str) -> float | str:
        """The rate as it is written. Raises ValueError: it is none."""
        hertz(value)
        return value

    def __str__(self) -> str:
        return "above 0; a fraction such as 80/3 is exact"


Count = Annotated[int, Range(1, LARGEST_COUNT)]
"""A whole number of at least 1."""
CountOr0 = Annotated[int, Range(0, LARGEST_COUNT)]
"""A whole number of at least 0; the key's meaning says what 0 does."""
Seed = Annotated[int, Range(0, LARGEST_SEED)]
"""64 bits."""
Positive = Annotated[float, Range(0, above=True)]
"""Above 0 and finite."""
NotNegative = Annotated[float, Range(0)]
"""At least 0 and finite; the key's meaning says what 0 does."""
Share = Annotated[float, Range(0, 1)]
"""From 0 to 1, both included."""
Seconds = Annotated[float, Range(0, 10**9, above=True)]
"""A time limit: clocks of the operating system end above it."""
Rate = Annotated[float | str, Hertz()]
"""Hertz; `hertz` makes an exact number of it."""
PathText = Annotated[str, Place()]
"""A path or URL."""
PathTextOrEmpty = Annotated[str, Place(optional=True)]
"""A path, or empty; the key's meaning says what that does."""
ModelText = Annotated[str, Place(optional=True, hub=True)]
"""A folder, a name on a model hub where there is no such folder, or empty; the key's meaning says what that does."""
TokenizerText = Annotated[str, Place(names=("mistral-v1",), stores=())]
"""A path, or the name of the tokenizer that comes with mistral-common."""
LocalText = Annotated[str, Place(stores=())]
"""A path that is no address."""
LocalModelText = Annotated[str, Place(optional=True, hub=True, stores=())]
"""As ModelText, and no address."""
InputText = Annotated[str, Place(stores=STORES)]
"""A path, or an address in an object store."""
InputTextOrEmpty = Annotated[str, Place(optional=True, stores=STORES)]
"""The same, or empty; the key's meaning says what that does."""
AddressOrEmpty = Annotated[str, Place(optional=True, stores=STORES, local=False)]
"""An address in an object store, or empty."""
