"""docs/configuration.md, written from the schema: `python -m megatron_lst.config.document docs/configuration.md`.

Types and defaults come from the dataclasses, meanings from the text after each field.
"""

import ast
import dataclasses
import inspect
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

from megatron_lst.config.load import to_plain
from megatron_lst.config.schema import Config
from megatron_lst.values import Place

HEADER = """# Configuration

Every key of a run, with its type, its default and its meaning. This page is written from
`megatron_lst/config/schema.py` by `make docs`; a test holds the two together.

```
lst train configs/lst-1b.yaml training.steps=1000 run.dir=runs/try parallel.tensor=2
```

- A file may name others in `base:` (one or a list, relative to itself); later files win, then `key=value` on the
  command line. Mappings merge, lists and values replace.
- On the command line the key's type says how a value is read. A text is taken as it stands, whatever is in it:
  `run.dir=my run #3`. A number, true or false is one: `training.lr=4e-4`. A list or a mapping is YAML:
  `parallel.split=[12,13]`. `null` is null where the key takes it: `model.kv_heads=null`.
- Numbers are finite and written in decimal: `10`, `25_000`, `0.5`, `4e-4`. `010`, `0x10` and `1:30` are refused, in
  files as well; a text key takes them as text. A whole number ends at 2^31 - 1 where no other end is given.
- In a path `~` at its start and `$NAME` are filled in as the configuration is read, here and in files: `run.dir=~/a`,
  `data.cache: $SCRATCH/cache`. A variable that is not set is refused. The run folder's `config.yaml` has the result.
- An unknown key, a number out of its range, a wrong type, a key that stands twice and contradictions between
  keys are refused, with file, line and the nearest right thing. The run folder keeps the
  resolved configuration in `config.yaml`.
"""


def field_texts(cls: type) -> dict[str, str]:
    """The string after each field; for classes that document fields in an `Args:` section, that."""
    found: dict[str, str] = {}
    body = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    for node, following in zip(body.body, body.body[1:], strict=False):
        if not isinstance(node, ast.AnnAssign) or not isinstance(following, ast.Expr):
            continue
        if isinstance(following.value, ast.Constant):
            found[ast.unparse(node.target)] = str(following.value.value)
    for names, text in re.findall(r"^ {4}([\w, ]+): ((?:.+)(?:\n {8,}.+)*)", inspect.getdoc(cls) or "", re.MULTILINE):
        found.update((name.strip(), found.get(name.strip(), text)) for name in names.split(","))
    return {name: " ".join(text.split()) for name, text in found.items()}


def type_name(kind: Any) -> str:
    """A type as people write it in YAML."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        if any(isinstance(rule, Place) for rule in args[1:]):
            return "path"
        return f"{type_name(args[0])} ({', '.join(map(str, args[1:]))})"
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if a is type(None) else type_name(a) for a in args)
    if origin is typing.Literal:
        return ", ".join(f"`{a}`" for a in args)
    if origin is tuple:
        return f"list of {type_name(args[0])}"
    if origin is dict:
        return "keys and values"
    if dataclasses.is_dataclass(kind):
        return "mapping"
    return {int: "whole number", float: "number", str: "text", bool: "true, false"}.get(kind, str(kind))


def sections(cls: type, prefix: str = "") -> list[tuple[str, type]]:
    """(dotted name, class) of every mapping, the outer ones first; lists of mappings end in `[]`."""
    found: list[tuple[str, type]] = []
    for field, kind in zip(dataclasses.fields(cls), _hints(cls), strict=True):
        inner = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
        if dataclasses.is_dataclass(inner) and inner not in [c for _, c in found]:
            name = f"{prefix}{field.name}" + ("[]" if inner is not kind else "")
            found += [(name, inner), *sections(inner, f"{name}.")]  # type: ignore[list-item,arg-type]
    return found


def _hints(cls: type) -> list[Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return [hints[field.name] for field in dataclasses.fields(cls)]


def default_text(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    plain = to_plain(value)
    if isinstance(plain, dict):
        return "see below"
    if isinstance(plain, float):
        return f"`{plain:g}`"
    if plain is None or isinstance(plain, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[plain]
    return f"`{plain}`"


def to_markdown() -> str:
    """The whole page."""
    parts = [HEADER]
    for name, cls in sections(Config):
        summary = (inspect.getdoc(cls) or "").split("\n")[0]
        parts.append(f"\n## `{name}`\n\n{summary}\n\n| key | type | default | meaning |\n|---|---|---|---|\n")
        texts = field_texts(cls)
        for field, kind in zip(dataclasses.fields(cls), _hints(cls), strict=True):
            meaning = texts[field.name].replace("|", "\\|")
            parts.append(f"| `{name}.{field.name}` | {type_name(kind)} | {default_text(field)} | {meaning} |\n")
    return "".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(to_markdown(), encoding="utf-8")
