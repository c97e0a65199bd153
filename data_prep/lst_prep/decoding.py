"""Pieces of a worker's items, decoded beside the model: in order, and no more ahead than memory is for."""

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lst_prep import audio
from lst_prep.config import PrepConfig
from lst_prep.layout import Layout
from lst_prep.loading import Rejections, all_unread, fault, is_of_the_piece
from lst_prep.manifest import Entry
from lst_prep.places import path_of
from lst_prep.reading import CannotRead, Inputs
from lst_prep.rejection import Rejection
from lst_prep.transcript import words_of
from megatron_lst.documents.heldout import HeldOut

AHEAD_SECONDS = 1800.0
"""Decoded audio that may wait for the model, as much as a batch holds; a piece for each thread may come on top."""


@dataclass
class _Ahead:
    """A piece of an item that a thread decodes.

    Attributes:
        inputs: its own: it counts its files, and waits for none that cannot be read.
        ended: whether `sound` or `error` is there.
    """

    item: int
    place: int
    entry: Entry
    inputs: Inputs
    sound: audio.Audio | None = None
    error: BaseException | None = None
    ended: bool = False


class Decoder:
    """Every usable piece of an item, decoded. All speech stages use this, so all see the same pieces.

    Threads only ever try: a file that cannot be read ahead is read again when its turn comes, by who asked for it. So
    rejections, retries and counts are those of decoding one piece after the other.

    Args:
        threads: that decode ahead; 0: none, a piece is decoded when it is asked for.
        transcribed: pieces without a transcript are of no use (the codebook takes them).
        seconds: of decoded audio that may wait.
    """

    def __init__(
        self,
        layout: Layout,
        config: PrepConfig,
        heldout: HeldOut,
        threads: int,
        transcribed: bool = True,
        seconds: float = AHEAD_SECONDS,
    ) -> None:
        self._layout, self._config, self._heldout, self._transcribed = layout, config, heldout, transcribed
        self._wanted, self._seconds = threads, seconds
        self._coming = deque[_Ahead]()  # that no thread has begun
        self._begun = deque[_Ahead]()  # in the same order, before all of `_coming`
        self._changed = threading.Condition()
        self._threads = list[threading.Thread]()
        self._closed = False
        self._following: int | None = None

    def expect(self, item: int | None) -> None:
        """The item that comes after the next one: it is begun when that one is decoded. None: not known."""
        self._following = item

    def pieces(self, item: int, rejections: Rejections, inputs: Inputs) -> Iterator[tuple[int, Entry, audio.Audio]]:
        """Line, entry and sound of each piece that can be used.

        Args:
            rejections: where those go that cannot.
            inputs: opens the audio.

        Raises:
            CannotRead: names every file of the item that cannot be read now, when the first of them is reached.
        """
        entries = self._layout.pieces.read(item)
        if self._wanted:
            self._begin(item, [entry for _, entry in entries], inputs)
        for place, (line, entry) in enumerate(entries):
            try:
                yield line, entry, self._next(item, place, entry, inputs)
            except CannotRead as error:
                raise all_unread(error, [later for _, later in entries[place + 1 :]], inputs) from error
            except Rejection as rejection:
                rejections.add(entry.id, entry.source, rejection)

    def end(self, item: int) -> None:
        """The item is done, or failed: what is left of it is dropped; without another one no thread is left."""
        with self._changed:
            self._drop_until(lambda ahead: ahead.item != item)
            idle = not self._begun and not self._coming
        if idle:
            self.close()

    def close(self) -> None:
        """Drop everything and wait for the threads."""
        with self._changed:
            self._closed = True
            self._coming.clear()
            self._begun.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._threads = []

    # -- the side that asks -------------------------------------------------------------------------------------

    def _begin(self, item: int, entries: list[Entry], inputs: Inputs) -> None:
        following, self._following = self._following, None
        with self._changed:
            self._drop_until(lambda ahead: ahead.item == item)
            if not self._begun and not self._coming:
                self._coming.extend(self._ahead(item, entries, inputs))
            if following is not None:
                with contextlib.suppress(Exception):  # said when it is that item's turn
                    later = [entry for _, entry in self._layout.pieces.read(following)]
                    self._coming.extend(self._ahead(following, later, self._layout.inputs(self._config)))
            self._closed = False
            self._changed.notify_all()
        while len(self._threads) < self._wanted:
            thread = threading.Thread(target=self._work, name="decode", daemon=True)
            thread.start()
            self._threads.append(thread)

    @staticmethod
    def _ahead(item: int, entries: list[Entry], inputs: Inputs) -> list[_Ahead]:
        return [
            _Ahead(item, place, entry, inputs.without_patience())
            for place, entry in enumerate(entries)
            if not inputs.is_given_up(entry.id, entry.audio)
        ]

    def _drop_until(self, wanted: Callable[[_Ahead], bool]) -> None:
        for queue in (self._begun, self._coming):
            while queue and not wanted(queue[0]):
                queue.popleft()
            if queue:
                return

    def _next(self, item: int, place: int, entry: Entry, inputs: Inputs) -> audio.Audio:
        """Raises Rejection, CannotRead, or what else decoding raises."""
        self._check_text(entry, inputs)
        ahead = self._taken(item, place) if self._wanted else None
        if ahead is None or isinstance(ahead.error, CannotRead):
            return self._decode(entry, inputs)
        inputs.tried += ahead.inputs.tried
        if ahead.error is not None:
            raise ahead.error
        assert ahead.sound is not None, "one of both"
        return ahead.sound

    def _taken(self, item: int, place: int) -> _Ahead | None:
        """What a thread made of the piece, waited for; None: no thread has it."""
        with self._changed:
            self._drop_until(lambda ahead: ahead.item != item or ahead.place >= place)
            while not self._begun and self._coming:
                self._changed.wait()
            if not self._begun or (self._begun[0].item, self._begun[0].place) != (item, place):
                return None
            ahead = self._begun[0]
            while not ahead.ended:
                self._changed.wait()
            self._begun.popleft()
            self._changed.notify_all()
        return ahead

    # -- the threads --------------------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        return sum(ahead.sound.seconds for ahead in self._begun if ahead.sound is not None) < self._seconds

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not (self._coming and self._has_room()):
                    self._changed.wait()
                if self._closed:
                    return
                ahead = self._coming.popleft()
                self._begun.append(ahead)
                self._changed.notify_all()
            try:
                ahead.sound = self._decode(ahead.entry, ahead.inputs)
            except BaseException as error:  # raised where the piece is asked for
                ahead.error = error
            with self._changed:
                ahead.ended = True
                self._changed.notify_all()

    # -- one piece ----------------------------------------------------------------------------------------------

    def _check_text(self, entry: Entry, inputs: Inputs) -> None:
        """Raises Rejection. Not for threads: the libraries of languages are not made for them."""
        if inputs.is_given_up(entry.id, entry.audio):
            raise Rejection("given_up", entry.audio)
        with _faults_are_rejections():
            if entry.split == "train" and (found := self._heldout.find(entry.text)):
                raise Rejection("held_out", found[0])
            if entry.text.strip() or self._transcribed:
                words_of(entry, self._config)

    def _decode(self, entry: Entry, inputs: Inputs) -> audio.Audio:
        """Raises Rejection or CannotRead."""
        with _faults_are_rejections():
            return audio.load(path_of(entry.audio), entry.start, entry.end, self._config.audio, inputs, entry.channel)


@contextlib.contextmanager
def _faults_are_rejections() -> Iterator[None]:
    try:
        yield
    except Rejection:
        raise
    except Exception as error:
        if not is_of_the_piece(error):
            raise
        raise fault(error) from error
