"""Pages of all keys, and JSON Schemas for editors, written from the dataclasses (`lst config keys|schema`).

Types and defaults come from the dataclasses, meanings from the text after each field.
"""

import ast
import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from megatron_lst.config.load import to_plain
from megatron_lst.config.schema import Config
from megatron_lst.values import LARGEST_COUNT, Place, Range, written

HEADER = """# Configuration

Every key of a run. `make docs` writes this page from `megatron_lst/config/schema.py`; a test holds the two together.
`lst config show CONFIG` prints every key of a configuration with the file and line that set it; `lst config schema run`
is a JSON Schema for editors.

```
lst train configs/lst-1b.yaml training.steps=1000 run.dir=runs/try parallel.tensor=2
```

- A file may name others in `base:` (one or a list, relative to itself); later files win, then `key=value` on the
  command line. Mappings merge, lists and values replace.
- On the command line the key's type says how a value is read. A text is taken as it stands: `run.dir=my run #3`. A list
  or a mapping is YAML: `parallel.split=[12,13]`. `null` is null where the key takes it: `model.kv_heads=null`.
- Numbers are finite and decimal: `10`, `25_000`, `0.5`, `4e-4`; `010`, `0x10` and `1:30` are refused. An integer ends
  at 2^31 - 1 where no other end is given.
- **A relative path counts from the folder of the file that names it**; on the command line, and as a default, from the
  current folder. The run folder's `config.yaml` holds absolute paths. URLs, `mistral-v1` and names on a hub are none.
- In a path `~` at its start and `$NAME` are filled in: `data.cache: $SCRATCH/cache`. A variable that is not set is
  refused.
- Unknown and repeated keys, wrong types, numbers out of range and contradictions between keys are refused, with file,
  line and the nearest right thing. The run folder keeps the resolved configuration in `config.yaml`.
"""


def field_texts(cls: type) -> dict[str, str]:
    """The string after each field; for classes that document fields in an `Args:` section, that."""
    found: dict[str, str] = {}
    for base in cls.__bases__:
        if dataclasses.is_dataclass(base):
            found |= field_texts(base)
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
        return " ".join([type_name(args[0]), *(_short(rule) for rule in args[1:])])
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
    return {int: "integer", float: "number", str: "text", bool: "true, false"}.get(kind, str(kind))


def _short(rule: Any) -> str:
    """A rule in a table's cell: `>= 1`, `> 0, <= 1`, `0..1`. An end at `LARGEST_COUNT` is not said: the page does."""
    if not isinstance(rule, Range):
        return f"({rule})"
    low = f"{'>' if rule.above else '>='} {written(rule.least)}"
    if rule.most in (math.inf, LARGEST_COUNT):
        return low
    if rule.above or rule.below:
        return f"{low}, {'<' if rule.below else '<='} {written(rule.most)}"
    return f"{written(rule.least)}..{written(rule.most)}"


def sections(cls: type, prefix: str = "") -> list[tuple[str, type]]:
    """(dotted name, class) of every mapping, the outer ones first; lists of mappings end in `[]`, mappings by name
    in `.NAME`."""
    found: list[tuple[str, type]] = []
    for field, kind in zip(dataclasses.fields(cls), _hints(cls), strict=True):
        origin = typing.get_origin(kind)
        inner = typing.get_args(kind)[{tuple: 0, dict: 1}[origin]] if origin in (tuple, dict) else kind
        if dataclasses.is_dataclass(inner) and inner not in [c for _, c in found]:
            name = f"{prefix}{field.name}" + {tuple: "[]", dict: ".NAME"}.get(origin, "")
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
    if dataclasses.is_dataclass(value):
        return "see below"
    if plain == "":
        return "empty"
    if isinstance(plain, float):
        return f"`{plain:g}`"
    if plain is None or isinstance(plain, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[plain]
    return f"`{plain}`"


def to_markdown(
    root: type = Config, header: str = HEADER, level: int = 2, said: Mapping[type, str] | None = None
) -> str:
    """Every key of a file that becomes a `root`: its own ones first, then each mapping's.

    Args:
        header: what stands above the tables.
        level: of the headings.
        said: classes whose keys the page has already, and where.
    """
    parts = [header]
    own = [f for f, k in zip(dataclasses.fields(root), _hints(root), strict=True) if not _is_mapping(k)]
    for name, cls in [*([("", root)] if own else []), *sections(root)]:
        title = f"`{name}`" if name else "At the top of the file"
        if said and cls in said:
            parts.append(f"\n{'#' * level} {title}\n\nAs in {said[cls]}.\n")
            continue
        summary = (inspect.getdoc(cls) or "").split("\n")[0]
        parts.append(f"\n{'#' * level} {title}\n\n{summary}\n\n| key | type | default | meaning |\n|---|---|---|---|\n")
        texts, prefix = field_texts(cls), f"{name}." if name else ""
        for field, kind in zip(dataclasses.fields(cls), _hints(cls), strict=True):
            if not name and _is_mapping(kind):
                continue
            meaning = texts[field.name].replace("|", "\\|")
            parts.append(f"| `{prefix}{field.name}` | {type_name(kind)} | {default_text(field)} | {meaning} |\n")
    return "".join(parts)


def _is_mapping(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind)


def to_json_schema(root: type, title: str) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a file that becomes a `root`, for editors: types, ranges, defaults, meanings."""
    schema = _object(root)
    files = {"type": "string"}
    schema["properties"]["base"] = {
        "description": "Files below this one, relative to it; later ones win.",
        "anyOf": [files, {"type": "array", "items": files}],
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **schema}


def _object(cls: type) -> dict[str, Any]:
    texts = field_texts(cls)
    properties: dict[str, Any] = {}
    for field, kind in zip(dataclasses.fields(cls), _hints(cls), strict=True):
        default = field.default
        if default is dataclasses.MISSING and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        described = {"description": texts.get(field.name, ""), **_type(kind)}
        if default is not dataclasses.MISSING and not dataclasses.is_dataclass(default):
            described["default"] = to_plain(default)
        properties[field.name] = described
    # Not `required`: a file may leave to another one, or to the command line, what it does not say.
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _type(kind: Any) -> dict[str, Any]:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        found = _type(args[0])
        for rule in args[1:]:
            if isinstance(rule, Range):
                found["exclusiveMinimum" if rule.above else "minimum"] = rule.least
                if rule.most != math.inf:
                    found["exclusiveMaximum" if rule.below else "maximum"] = rule.most
        return found
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type(inner) for inner in args]}
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin is tuple:
        return {"type": "array", "items": _type(args[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(args[1])}
    if dataclasses.is_dataclass(kind):
        return _object(kind)  # type: ignore[arg-type]
    names = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
    return {"type": names[kind]} if kind in names else {}
