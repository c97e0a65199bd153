"""Transcript + audio -> the time of every word: by a trained acoustic model, or from an alignment that is there."""

from collections.abc import Sequence
from dataclasses import replace

from lst_prep.align.spans import AlignedWords, Aligner, Piece
from lst_prep.config import AlignConfig
from lst_prep.rejection import Rejection
from megatron_lst.errors import UserError

__all__ = ["AlignedWords", "Aligner", "Aligners", "Piece", "make_aligner"]


def make_aligner(config: AlignConfig) -> Aligner:
    """The aligner that the config names. Raises UserError when its model cannot be loaded."""
    if config.aligner == "pocketsphinx":
        from lst_prep.align.sphinx import SphinxAligner

        return SphinxAligner(config)
    if config.aligner == "import":
        from lst_prep.align.imported import ImportAligner

        return ImportAligner(config)
    if config.aligner == "whisper":
        from lst_prep.align.whisper import WhisperAligner

        return WhisperAligner(config)
    if config.aligner == "none":
        from lst_prep.align.untimed import Untimed

        return Untimed()
    from lst_prep.align.ctc import CtcAligner

    return CtcAligner(config)


class Aligners:
    """The aligner of each language.

    Attributes:
        fingerprint: of all of them.

    Raises:
        UserError: the model of one cannot be loaded.
    """

    def __init__(self, config: AlignConfig) -> None:
        self._config = config
        self._made = {"": make_aligner(replace(config, languages=()))}
        self._made |= {own.language: make_aligner(config.of(own.language)) for own in config.languages}
        own_ones = [f"{language}: {made.fingerprint}" for language, made in sorted(self._made.items()) if language]
        self.fingerprint = "; ".join([self._made[""].fingerprint, *own_ones])

    def fingerprint_of(self, language: str) -> str:
        """Of the aligner of one language."""
        return self._made[self._config.owner(language)].fingerprint

    def align_batch(self, pieces: Sequence[Piece]) -> list[AlignedWords | Rejection]:
        """Each piece by the aligner of its language. See `Aligner`."""
        results: list[AlignedWords | Rejection] = [Rejection("language", "no aligner")] * len(pieces)
        groups: dict[str, list[int]] = {}
        for index, piece in enumerate(pieces):
            try:
                self._config.of(piece.language).require_language(piece.language, "the language of the piece")
            except UserError as error:
                results[index] = Rejection("language", str(error))
            else:
                groups.setdefault(self._config.owner(piece.language), []).append(index)
        for owner, members in groups.items():
            found = self._made[owner].align_batch([pieces[index] for index in members])
            for index, result in zip(members, found, strict=True):
                results[index] = result
        return results
