"""Giving up by name what is gone for good: nobody does it by accident, and every name must name something."""

from collections.abc import Iterable
from pathlib import Path

from lst_prep.config import PrepConfig
from lst_prep.layout import Layout
from lst_prep.places import whole
from megatron_lst.errors import UserError
from megatron_lst.files import write_text


def give_up(config: PrepConfig, names: Iterable[str]) -> int:
    """Add files and ids to what a preparation gives up. Returns how many are new.

    Reads the whole table of pieces: each name must be an id, an audio file or a text file of this preparation.

    Raises:
        UserError: names that name nothing, or a preparation without items of work.
    """
    layout, wanted = Layout(config.out), list(dict.fromkeys(name for name in names if name.strip()))
    tables = [table for table in (layout.recordings, layout.pieces) if table.items.exists()]
    if not layout.plan.exists():
        raise UserError(f"{layout.out}: there are no items of work yet: run `lst prep manifest`")
    keys = {name: {name, whole(name)} for name in wanted}
    left = dict(keys)
    texts = [whole(path) for path in layout.texts()]
    left = {name: key for name, key in left.items() if not key & set(texts)}
    for table in tables:
        for entry in table:
            if not left:
                break
            there = {entry.id, entry.audio, whole(entry.audio)}
            left = {name: key for name, key in left.items() if not key & there}
    if left:
        raise UserError(
            f"{', '.join(list(left)[:5])}: neither an id nor a file of this preparation; "
            "write them as the manifest does"
        )
    old = _known(layout.given_up)
    new = [name for name in wanted if name not in old]
    write_text(layout.given_up, "".join(f"{name}\n" for name in [*old, *new]))
    return len(new)


def _known(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
