"""What is said of a configuration that cannot be read."""

import difflib
from pathlib import Path

import yaml

from megatron_lst.config import shipped


def cannot_read(path: Path, error: OSError, named_by: Path | None = None) -> str:
    """Why a file cannot be read, and which one may be meant.

    Args:
        named_by: the file whose `base:` names it.
    """
    what = f"cannot read the configuration {path}"
    if named_by is not None:
        what += f", the base of {named_by}"
    if path.is_dir():
        if (path / "config.yaml").is_file():
            return f"{what}: it is a folder; did you mean {path / 'config.yaml'}?"
        found = sorted(file.name for file in path.glob("*.yaml"))
        inside = f"it has {', '.join(found[:5])}" if found else "no .yaml file is in it"
        return f"{what}: it is a folder; name the file ({inside})"
    if isinstance(error, FileNotFoundError):
        folder = path.parent
        if not folder.is_dir():
            return f"{what}: there is no folder {folder}; the current one is {Path.cwd()}"
        names = sorted(file.name for file in folder.glob("*.y*ml"))
        if close := difflib.get_close_matches(path.name, names, n=1):
            return f"{what}: there is no such file; did you mean {folder / close[0]}?"
        if close := difflib.get_close_matches(path.with_suffix("").as_posix(), shipped.names(), n=1):
            return f"{what}: there is no such file; did you mean {close[0]}, which comes with the package?"
        return f"{what}: there is no such file; the current folder is {Path.cwd()}"
    return f"{what}: {error.strerror}"


def not_yaml(name: str, error: yaml.YAMLError) -> str:
    """The place and the problem on one line."""
    mark = getattr(error, "problem_mark", None)
    problem = str(getattr(error, "problem", None) or error)
    if "'\\t'" in problem:
        problem = "a tab; indent with spaces"
    place = f"{name}, line {mark.line + 1}" if mark is not None else name
    return f"{place}: not valid YAML: {' '.join(problem.split())}"
