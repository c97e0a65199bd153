"""Fills the scripts of `launchers/`: `@NAME@` becomes text that is safe where it stands, or an error."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_lst.config import Config
from megatron_lst.config.load import merge, parse_overrides, read_yaml
from megatron_lst.errors import UserError

_MARK = re.compile(r"@([A-Z_]+)@")


def template_folder() -> Path:
    """`launchers/` of the checkout, or its copy in the installed package.

    Raises:
        UserError: neither is there.
    """
    here = Path(__file__).resolve()
    for folder in (here.parent / "launchers", here.parents[2] / "launchers"):
        if (folder / "slurm").is_dir():
            return folder
    raise UserError(f"the launch scripts are missing beside {here.parent}: install megatron-lst again")


def fill(name: str, values: Mapping[str, str]) -> str:
    """The template `name` (relative to `launchers/`) with every mark replaced; values are inserted as they are.

    A line that holds nothing but a mark with an empty value disappears.
    """
    lines = []
    for line in (template_folder() / name).read_text().splitlines():
        alone = _MARK.fullmatch(line.strip())
        if alone and not values[alone[1]]:
            continue
        lines.append(_MARK.sub(lambda match: values[match[1]], line).rstrip())
    return "\n".join(lines) + "\n"


def words(values: Sequence[str], name: str) -> str:
    """Shell words that stand for exactly these strings, whatever is in them.

    Raises:
        UserError: a value holds a line break or another control character.
    """
    for value in values:
        if not value.isprintable():
            raise UserError(f"{name}: control characters cannot stand in a script: {value!r}")
    return shlex.join(values)


def is_run_dir_filled_in(config: str | Path, overrides: Sequence[str]) -> bool:
    """Whether `~` or `$NAME` stands in `run.dir` as a person wrote it."""
    values = merge(read_yaml(config), parse_overrides(overrides, Config))
    written = str(values.get("run", {}).get("dir", Config().run.dir))
    return os.path.expanduser(os.path.expandvars(written)) != written
