"""`lst prep chat`: conversations to shard sets, OUT/chat.json and OUT/train.yaml. Resumable anywhere."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from lst_prep.chat.config import ChatConfig
from lst_prep.chat.hearing import codec_of_config
from lst_prep.chat.stages import STAGE, Item, chat_factory, conversations, parts_of, set_name, words_of
from lst_prep.engine import lock, run_stage
from lst_prep.importing.records import Part
from lst_prep.items import Receipts, Stage, full_disk_is_the_users
from lst_prep.layout import Layout, compare_plan, hash_of
from lst_prep.places import path_of
from lst_prep.publishing import publish
from lst_prep.rejection import REASONS
from lst_prep.summary import Summary
from lst_prep.tokenizer import chat_format, load_tokenizer
from lst_prep.training_lines import vocabulary_of
from lst_prep.units import Codebook
from megatron_lst.chat import ChatTemplate
from megatron_lst.config.paths import absolute
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.format import TokenizerInfo, file_hash
from megatron_lst.documents.heldout import ANYWHERE, HeldOut, sentence_spans
from megatron_lst.documents.writing import merge_parts
from megatron_lst.errors import UserError
from megatron_lst.files import write_bytes, write_json, write_text

FORMAT_FILE = "chat.json"
_NAMED = 20
"""Conversations that a refusal names."""


def run_chat(config: ChatConfig, quiet: bool = False) -> dict[str, Any]:
    """Do all that is missing.

    Returns:
        The summary, also in OUT/summary.json.

    Raises:
        UserError: a template that leaves the assistant's span undefined, conversations that cannot be used (with
            `on_bad: stop`), equal ids, another plan in the folder, no space left.
    """
    config, layout = absolute(config), Layout(config.out)
    with lock(layout.lock), full_disk_is_the_users():
        tokenizer, codec = load_tokenizer(config.tokenizer), codec_of_config(config)
        form = ChatTemplate(chat_format(tokenizer, config.template, config.end_of_turn), tokenizer).form
        items = _divided(config, layout)
        plan = compare_plan(layout, _plan(config, items, form.to_plain(), tokenizer.info))
        if not layout.tokenizer.exists():  # written last
            _hold_out(config, layout, items)
            info = {"spec": config.tokenizer, "path": tokenizer.path, **asdict(tokenizer.info)}
            write_json(layout.tokenizer, info)
        jobs = config.jobs
        run_stage(
            Stage(STAGE, len(items), chat_factory, (config, form, items)),
            layout.work,
            plan,
            jobs,
            quiet=quiet,
            max_unreadable=config.reading.max_unreadable,
        )
        receipts = Receipts(layout.work, STAGE, plan)
        results = [found for item in range(len(items)) if (found := receipts.read(item)) is not None]
        summary = Summary()
        for result in results:
            summary.add(result)
        heldout = len(HeldOut.load(layout.heldout))
        write_json(layout.summary, summary.content(plan, {}, heldout, config.warn_lost))  # also of what is refused
        _judge(config, results)
        manifests = {}
        for source in config.sources:
            name = set_name(source)
            parts = [layout.part(name, i).name for i, result in enumerate(results) if result["counts"].get(name)]
            if not parts:
                raise UserError(f"source {source.name!r}: no conversation can be used; see {layout.summary}")
            about = {"plan": plan, **summary.about(name, config.attributions), "chat": form.to_plain()}
            manifests[name] = merge_parts(layout.out / name, parts, "chat", tokenizer.info, codec, about)
        content = summary.content(plan, manifests, heldout, config.warn_lost)
        write_json(layout.summary, content)
        _keep_codebook(config, layout, codec)
        write_json(layout.out / FORMAT_FILE, form.to_plain())
        write_text(layout.out / "train.yaml", train_yaml(config, layout, tokenizer.info, codec))
        if config.publish:
            publish(layout.out, config.publish, config.jobs, quiet)
        return content


def _divided(config: ChatConfig, layout: Layout) -> list[Item]:
    inputs, items = layout.inputs(config), list[Item]()
    for number, source in enumerate(config.sources):
        parts, size = list[Part](), 0.0
        for part in parts_of(source, inputs):
            if parts and size + part.size > config.jobs.item_megabytes * 1e6:
                items.append(Item(number, tuple(parts)))
                parts, size = [], 0.0
            parts.append(part)
            size += part.size
        items.append(Item(number, tuple(parts)))
    return items


def _plan(config: ChatConfig, items: list[Item], form: dict[str, Any], tokenizer: TokenizerInfo) -> dict[str, Any]:
    """Everything that the results depend on."""
    choices = asdict(config)
    for name in ("out", "publish", "jobs", "reading", "give_up", "attributions", "warn_lost", "on_bad", "device"):
        choices.pop(name)
    for source in choices["sources"]:
        source.pop("weight")
    inputs = Layout(config.out).inputs(config)
    files = sorted({part.path for item in items for part in item.parts} | set(config.heldout))
    sets = {path: file_hash(Path(path) / "manifest.json") for path in config.spans.values()}
    return {
        "version": 1,
        "chat": choices,
        "format": form,
        "tokenizer": tokenizer.fingerprint,
        "inputs": {path: hash_of(path, "sources", inputs) for path in files} | sets,
    }


def _hold_out(config: ChatConfig, layout: Layout, items: list[Item]) -> None:
    """Read every conversation once: ids have to differ, and sentences of held-out ones are held out.

    Sentences of fewer than ANYWHERE words are not: "Yes." is said everywhere.

    Raises:
        UserError: an id that is there twice in a source.
    """
    heldout, inputs, seen = HeldOut(), layout.inputs(config), set[tuple[int, str]]()
    for path in config.heldout:
        with inputs.local(path) as file:
            heldout.update(HeldOut.load(file))
    for item in items:
        source = config.sources[item.source]
        for part in item.parts:
            for where, name, turns in conversations(source, part, inputs, lambda *_: None):
                if (item.source, name) in seen:
                    raise UserError(f"source {source.name!r}: {where}: the id {name!r} was there before")
                seen.add((item.source, name))
                said = words_of(turns) if source.split == "heldout" else ""
                for begin, end in sentence_spans(said):
                    if len(said[begin:end].split()) >= ANYWHERE:
                        heldout.add(said[begin:end])
    heldout.save(layout.heldout)


def _keep_codebook(config: ChatConfig, layout: Layout, codec: Codec | None) -> None:
    """OUT/codebook.safetensors, which runs and exports look for beside their shards, where the codec is one of ours."""
    inputs = layout.inputs(config)
    near = [Path(path).parent / layout.codebook.name for path in config.spans.values()]
    for path in [path_of(config.codebook)] if config.codebook else near:
        if codec is not None and inputs.is_file(path):
            with inputs.local(path) as file:
                if Codebook.load(file).fingerprint == codec.fingerprint:
                    write_bytes(layout.codebook, file.read_bytes())
                    return


def _judge(config: ChatConfig, results: list[dict[str, Any]]) -> None:
    """With `on_bad: stop`, refuse conversations that cannot be used. Raises UserError: names them."""
    bad = [line for result in results for line in result["rejections"]]
    if not bad or config.on_bad == "drop":
        return
    counts = Counter(line["reason"] for line in bad)
    listed = ", ".join(f"{count:,} {reason} ({REASONS[reason]})" for reason, count in counts.most_common())
    shown = [f"  {line['id']}: {line['reason']}: {line['detail']}" for line in bad[:_NAMED]]
    raise UserError(
        "\n".join(
            [
                f"{len(bad):,} conversations cannot be used: {listed}; nothing is written. Mend them (in another "
                f"`out`), or leave them out with on_bad=drop. The first:",
                *shown,
            ]
        )
    )


def train_yaml(config: ChatConfig, layout: Layout, tokenizer: TokenizerInfo, codec: Codec | None) -> str:
    """A file for a training configuration to name among its `base`."""
    vocabulary = vocabulary_of(tokenizer, codec)
    sources, validation = [], []
    for source in config.sources:
        entry = {"name": source.name, "kind": "chat", "shards": [set_name(source)]}
        if source.split == "train":
            sources.append({**entry, "weight": source.weight})
        else:
            validation.append(entry)
    data = {"sources": sources} | ({"validation": validation} if validation else {})
    head = "# Written by `lst prep chat`. Name it among the `base` files of a training configuration.\n"
    return head + yaml.safe_dump(
        {"vocabulary": vocabulary, "data": data}, sort_keys=False, allow_unicode=True, default_flow_style=None
    )
