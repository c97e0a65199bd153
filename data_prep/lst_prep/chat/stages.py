"""The work of a preparation of conversations, one item at a time. Factories run in worker processes; see `engine`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from lst_prep.chat.config import ChatConfig, ChatSource
from lst_prep.chat.documents import Fitting, document_of
from lst_prep.chat.hearing import Hearing, codec_of_config
from lst_prep.chat.styles import styled
from lst_prep.importing.config import ImportSource
from lst_prep.importing.readers.lines import LinesReader, read_lines
from lst_prep.importing.records import OnReject, Part
from lst_prep.items import Work
from lst_prep.layout import Layout
from lst_prep.parts import Parts, SetTotals
from lst_prep.places import path_of
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from lst_prep.stages import Rejections
from lst_prep.tokenizer import load_tokenizer
from megatron_lst.chat import BadConversation, ChatFormat, ChatTemplate, Stretch, Turn
from megatron_lst.chat.turns import Said, Text, turns_of
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.errors import DamagedDataError, UserError

STAGE = "chat"
_KEYS = {"id", "messages"}


@dataclass(frozen=True)
class Item:
    """Stretches of files of one source that are done together."""

    source: int
    parts: tuple[Part, ...]


def _lines(source: ChatSource) -> ImportSource:
    return ImportSource(name=source.name, format="jsonl", path=source.path)


def parts_of(source: ChatSource, inputs: Inputs) -> list[Part]:
    """Stretches of the files of a source. Raises UserError: there is none, or one is damaged."""
    return LinesReader().parts(_lines(source), inputs)


def conversations(
    source: ChatSource, part: Part, inputs: Inputs, on_reject: OnReject
) -> Iterator[tuple[str, str, list[Turn]]]:
    """(where it stands, id, turns) of each conversation of a part; others are given to `on_reject` with their id."""
    for where, number, value in read_lines(_lines(source), path_of(part.path), inputs, on_reject, part.begin, part.end):
        name = value.get("id", f"{PurePath(part.path).name.split('.')[0]}-{number}")
        try:
            if not isinstance(name, str) or not name:
                raise BadConversation("bad_conversation", f"id is {name!r}, expected text")
            if unknown := set(value) - _KEYS:
                raise BadConversation("unknown_key", f"unknown key {min(unknown)!r}, expected id and messages")
            turns = turns_of(value.get("messages"))
            if turns[-1].role != "assistant":  # seen here, no audio of it is read
                raise BadConversation("ends_with_user", f"ends with {turns[-1].role}: there is no answer to learn")
            yield where, name, turns
        except BadConversation as error:
            on_reject(name, Rejection(error.reason, f"{where}: {error}"))


def words_of(turns: list[Turn]) -> str:
    """What user and assistant say in text or by a transcript, for comparison with held-out text."""
    said = [
        part.text if isinstance(part, Text) else part.transcript
        for turn in turns
        if turn.role != "system"  # the same in many conversations
        for part in turn.parts
        if not isinstance(part, Said)
    ]
    return "\n".join(filter(None, said))


def _stretches(template: ChatTemplate, turns: list[Turn]) -> list[Stretch]:
    """Raises Rejection: what the template refuses of these turns."""
    try:
        return template.stretches(turns)
    except BadConversation as error:
        raise Rejection(error.reason, str(error)) from None
    except UserError as error:
        raise Rejection("bad_conversation", str(error)) from None


def set_name(source: ChatSource) -> str:
    return source.name if source.split == "train" else f"heldout-{source.name}"


def chat_factory(config: ChatConfig, form: ChatFormat, items: list[Item]) -> Work:
    """Documents of an item: its part of the source's set."""
    layout, tokenizer = Layout(config.out), load_tokenizer(config.tokenizer)
    codec, heldout = codec_of_config(config), HeldOut.load(layout.heldout)
    template, fitting = ChatTemplate(form, tokenizer), Fitting(config.row, tokenizer.info, codec)
    inputs = layout.inputs(config)
    hearing = Hearing(config, codec, inputs)

    def work(number: int) -> dict[str, Any]:
        item = items[number]
        source = config.sources[item.source]
        rejections, stats, used = Rejections(), SetTotals(codec), 0
        parts = Parts(layout, config.shards, number, codec, turns=True)

        def reject(where: str, rejection: Rejection) -> None:
            rejections.add(where, source.name, rejection)

        for part in item.parts:
            folder = path_of(part.path).parent
            for where, name, turns in conversations(source, part, inputs, reject):
                try:
                    if source.split == "train" and (found := heldout.find(words_of(turns))):
                        raise Rejection("held_out", str(found[0]))
                    made = []
                    for style in source.styles:
                        full = name if len(source.styles) == 1 else f"{name}:{style}"
                        spoken = styled(turns, style, lambda a, f=folder: hearing.hear(a, f), config.chunk_words)  # type: ignore[misc]
                        document = document_of(full, source.name, source.license, _stretches(template, spoken), codec)
                        document.check(codec.size if codec else None, tokenizer.info.size)
                        fitting.check(document)
                        if source.split == "train" and (found := heldout.find(words_of(spoken))):
                            raise Rejection("held_out", str(found[0]))
                        made.append(document)
                except Rejection as rejection:
                    reject(name, Rejection(rejection.reason, f"{where}: {rejection.detail}"))
                except DamagedDataError as error:
                    reject(name, Rejection("bad_conversation", f"{where}: {error}"))
                else:
                    used += 1
                    for document in made:
                        parts.add(set_name(source), document, codec.size if codec else None, tokenizer.info.size)
                        stats.add(set_name(source), document)
        return {
            "files": parts.finish(),
            "counts": parts.counts,
            "rejections": rejections.all,
            "sources": stats.sources,
            "licenses": stats.licenses,
            "used": {source.name: used},
        }

    return work
