"""Pieces of recordings as sound, and those that were rejected to listen to."""

from collections.abc import Iterator
from typing import Any

from lst_prep.audio import RATE, open_audio, to_rate
from lst_prep.config import AudioConfig, ReadingConfig
from lst_prep.layout import ItemTable
from lst_prep.manifest import Entry
from lst_prep.places import path_of
from lst_prep.reading import CannotRead, Inputs
from lst_prep.rejection import REASONS, Rejection
from lst_prep.report.state import State
from lst_prep.report.tables import short_name
from lst_prep.strings import printable
from megatron_lst.pages import Player, Sound, Sounds
from megatron_lst.pages.sound import LONGEST

_EACH = 3
"""Pieces of each reason."""
_LOOKED_AT = 100_000
"""Pieces among which the rejected ones are looked for."""


def clip(entry: Entry, sounds: Sounds) -> Sound | str:
    """The beginning of a piece at 16 kHz or less, or why it cannot be heard. Nothing is waited for."""
    inputs = Inputs(ReadingConfig(attempts=1))
    try:
        anything = AudioConfig(min_rate=1)
        with open_audio(path_of(entry.audio), entry.start, entry.end, anything, inputs) as (file, first, last):
            samples = file.read(first, min(last - first, round(LONGEST * file.rate)), entry.channel).mean(axis=1)
            rate = file.rate
    except (CannotRead, Rejection) as error:
        return f"no sound: {printable(str(error))}"
    return sounds.add(to_rate(samples, rate), RATE) if rate > RATE else sounds.add(samples, rate)


def rejected_pieces(state: State, sounds: Sounds) -> list[Player]:
    """A few of each reason. Lines of manifests and texts that were rejected have no sound, and are left out."""
    wanted: dict[str, dict[str, Any]] = {}
    for examples in state.summary["rejection_examples"].values():
        wanted |= {line["id"]: line for line in examples[:_EACH]}
    found = {printable(e.id): e for e in _entries(state, set(wanted))} if wanted and not state.imported else {}
    players = []
    for name, line in wanted.items():
        if (entry := found.get(name)) is not None:
            heard = clip(entry, sounds)
            why = f"{line['reason']}: {REASONS.get(line['reason'], '')}"
            detail = f" ({line['detail']})" if line["detail"] and line["detail"][:100] not in entry.text else ""
            note = why + detail + (f". {heard}" if isinstance(heard, str) else "")
            sound = heard if isinstance(heard, Sound) else None
            about = ", ".join(part for part in ("rejected", entry.source, entry.speaker) if part)
            players.append(Player(short_name(name), about, entry.text, note, sound))
    return players


def _entries(state: State, ids: set[str]) -> Iterator[Entry]:
    """Entries of these ids among the first pieces and recordings."""
    layout, left = state.layout, set(ids)
    for table in (layout.pieces, layout.recordings):
        looked_at = 0
        for item in range(_length(table)):
            for _, entry in table.read(item):
                looked_at += 1
                if printable(entry.id) in left:
                    left.discard(printable(entry.id))
                    yield entry
            if not left or looked_at > _LOOKED_AT:
                break


def _length(table: ItemTable) -> int:
    return len(table) if table.items.exists() else 0
