"""`lst config`: what a configuration comes to, where each value is from, and which keys there are."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

config_app = typer.Typer(no_args_is_help=True, help="Show a configuration with its origins; list all keys.")


class Of(StrEnum):
    """What a file configures."""

    run = "run"
    prep = "prep"
    imports = "import"
    chat = "chat"


KIND = Annotated[Of, typer.Argument(help="run: lst train. prep, import, chat: lst prep run, import, chat")]


def _class(of: Of) -> type:
    if of == Of.run:
        from megatron_lst.config.schema import Config

        return Config
    from lst_prep.chat.config import ChatConfig
    from lst_prep.config import PrepConfig
    from lst_prep.importing.config import ImportConfig

    classes: dict[Of, type] = {Of.prep: PrepConfig, Of.imports: ImportConfig, Of.chat: ChatConfig}
    return classes[of]


def _kind(values: Mapping[str, Any]) -> Of:
    """What a file configures, by the keys at its top."""
    import dataclasses

    keys = {of: {field.name for field in dataclasses.fields(_class(of))} for of in Of}
    # A key that is wrong is named when the rest is built, by what most of the others are of.
    return max(Of, key=lambda of: (set(values) <= keys[of], len(set(values) & keys[of])))


@config_app.command()
def show(
    config: Annotated[str, typer.Argument(help="A YAML file, such as configs/demo.yaml")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value")] = None,
    of: Annotated[Of | None, typer.Option(help="What it configures; default: found by its keys")] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is no default")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object")] = False,
) -> None:
    """The configuration as it is used, with the file and line that each value is from."""
    from megatron_lst.config.load import build, merge, parse_overrides, read_yaml, telling_places
    from megatron_lst.config.origins import DEFAULT, as_yaml, origins
    from megatron_lst.config.paths import absolute

    values = read_yaml(config)
    kind = of or _kind(values)
    cls = _class(kind)
    values = merge(values, parse_overrides(overrides or (), cls))
    resolved: Any = absolute(build(cls, values))
    if kind == Of.run:
        from megatron_lst.config.checks import check

        with telling_places(cls, values):
            check(resolved)
    found = [origin for origin in origins(resolved, values) if not (changed and origin.place == DEFAULT)]
    if as_json:
        print(json.dumps({origin.key: {"value": origin.value, "from": origin.place} for origin in found}))
    else:
        print(as_yaml(found), end="")


@config_app.command()
def schema(of: KIND = Of.run) -> None:
    """JSON Schema for editors. In VS Code: `# yaml-language-server: $schema=FILE` at the top of a YAML file."""
    from megatron_lst.config.document import to_json_schema

    print(json.dumps(to_json_schema(_class(of), f"megatron-lst: {of.value}"), indent=1))


@config_app.command()
def keys(of: KIND = Of.run) -> None:
    """Every key with type, default and meaning, as Markdown: docs/configuration.md, docs/preparation.md."""
    from megatron_lst.config.document import to_markdown

    if of == Of.run:
        print(to_markdown(), end="")
        return
    print(preparation_page(), end="")


PREPARATION = """# Keys of a preparation

`make docs` writes this page from `config.py` in `data_prep/lst_prep`, `importing` and `chat`; a test holds it to them.
How to write values, `base:`, `~` and `$NAME`: [configuration.md](configuration.md). What the keys are for:
[data-prep.md](data-prep.md), [your-tokens.md](your-tokens.md), [chat.md](chat.md).

## `lst prep run`
"""


def preparation_page() -> str:
    """Markdown of the keys of all preparations: of recordings and text, of tokens, of conversations."""
    from megatron_lst.config.document import sections, to_markdown

    pages = [to_markdown(_class(Of.prep), PREPARATION, 3)]
    said = {cls: "`lst prep run`" for _, cls in sections(_class(Of.prep))}
    for of in (Of.imports, Of.chat):
        pages.append(to_markdown(_class(of), f"\n## `lst prep {of}`\n", 3, said))
        said |= {cls: f"`lst prep {of}`" for _, cls in sections(_class(of)) if cls not in said}
    return "".join(pages)
