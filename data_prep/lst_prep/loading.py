"""Pieces of an item: batches of them, what is not used and why, what cannot be read now."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from lst_prep import audio
from lst_prep.manifest import Entry
from lst_prep.reading import CannotRead, Inputs
from lst_prep.rejection import Rejection
from lst_prep.strings import printable
from megatron_lst.errors import LstError


class Rejections:
    """What was not used in one item: for the receipt, and for the report."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []

    def add(self, name: str, source: str, rejection: Rejection) -> None:
        line: dict[str, Any] = {"id": printable(name), "source": printable(source), "reason": rejection.reason}
        line["detail"] = printable(rejection.detail)[:200]
        if rejection.lost_bytes:
            line["lost_bytes"] = rejection.lost_bytes
        self.all.append(line)


def is_of_the_piece(error: Exception) -> bool:
    """Whether an error that nobody foresaw may be laid to one piece: not what the machine or the store says."""
    machine = isinstance(error, OSError | MemoryError | ImportError | LstError) or "CUDA" in str(error)
    return not machine and type(error).__name__ not in ("OutOfMemoryError", "AcceleratorError")


def fault(error: Exception) -> Rejection:
    """What is said of a piece that brought down what should have handled it."""
    return Rejection("fault", f"{type(error).__name__}: {error}")


def all_unread(first: CannotRead, later: list[Entry], inputs: Inputs) -> CannotRead:
    """The first file that cannot be read and, each tried once, those behind it: all can be given up at once."""
    files = dict(first.files)
    for entry in later:
        if not inputs.is_given_up(entry.id, entry.audio) and entry.audio not in files:
            try:
                with inputs.open(entry.audio) as file:
                    file.peek(1)
            except CannotRead as error:
                files |= error.files
            except (Rejection, OSError, ValueError):
                continue  # bad input: its turn comes when the item can be done
    return CannotRead(files, inputs.tried)


def batches(
    pieces: Iterator[tuple[int, Entry, audio.Audio]], seconds: float = 1800.0
) -> Iterator[list[tuple[int, Entry, audio.Audio]]]:
    """Pieces of at most `seconds` in all (or one longer), so that memory does not grow with the recording."""
    batch: list[tuple[int, Entry, audio.Audio]] = []
    for piece in pieces:
        if batch and sum(sound.seconds for *_, sound in [*batch, piece]) > seconds:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


Given = TypeVar("Given")
Made = TypeVar("Made")


def one_by_one(function: Callable[[list[Given]], list[Made]], batch: list[Given]) -> list[Made | Rejection]:
    """What `function` makes of a batch. Where it fails, each is tried alone, and one that fails alone is a rejection.

    Raises:
        Exception: of the machine or the store (`is_of_the_piece`), or when all of several pieces fail alone.
    """
    try:
        return list(function(batch))
    except Exception as error:
        if not is_of_the_piece(error):
            raise
        made: list[Made | Rejection] = []
        for one in batch:
            try:
                made += function([one])
            except Exception as alone:
                if not is_of_the_piece(alone):
                    raise
                made.append(fault(alone))
        if len(batch) > 1 and all(isinstance(one, Rejection) for one in made):
            raise
        return made


def only_here(unloaded: list[dict[str, Any]], units: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Rejections of pieces that could be loaded for units, and are given up since: the stage of units has not
    counted them.

    Args:
        unloaded: rejections of this stage's own loading.
        units: the result of the stage of units for this item; None: it is not done yet, `shards` compares later.

    Raises:
        CannotRead: a piece that had units is lost for another reason: its file is not what it was.
    """
    if units is None:
        return [line for line in unloaded if line["reason"] == "given_up"]
    known = {line["id"] for line in units["rejections"]}
    lost = [line for line in unloaded if line["id"] not in known]
    if broken := [line for line in lost if line["reason"] != "given_up"]:
        what = {line["id"]: f"{line['reason']}: {line['detail']}; its units were made" for line in broken}
        raise CannotRead(what)
    return lost
