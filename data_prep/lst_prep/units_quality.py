"""`lst prep units-quality`: recordings of repeated sentences, a codebook for each configuration, and what they show."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lst_prep import manifest
from lst_prep.audio import load
from lst_prep.config import PrepConfig, UnitsConfig
from lst_prep.fitting import centres_of
from lst_prep.layout import Layout
from lst_prep.places import path_of
from lst_prep.reading import Inputs
from lst_prep.rejection import Rejection
from lst_prep.units import Codebook, Extractor, make_extractor
from lst_prep.units.codebook import import_codebook
from lst_prep.units.quality import Quality, measure, speak_in_units
from megatron_lst.errors import UserError

SENTENCES = Path(__file__).resolve().parents[1] / "corpus" / "sentences" / "manifest.jsonl"
"""Twelve sentences in each of four synthetic voices; they come with the repository (not with the wheel)."""
_KEPT = 200
"""Characters of a message about what was left out."""
Say = Callable[[str], None]


def with_extractor(config: PrepConfig, extractor: str) -> PrepConfig:
    """The same preparation with the defaults of another extractor."""
    own = config.units
    return replace(config, units=UnitsConfig(extractor, codebook_size=own.codebook_size, rate=own.rate))


def quality(config: PrepConfig, sentences: Path, fit_minutes: float, say: Say) -> Quality:
    """Measure the units of one configuration.

    The codebook is the preparation's own where it is finished and of this extractor, else `units.codebook`, else one
    that is fitted here on training recordings of the configuration's manifests, and written nowhere.

    Args:
        sentences: manifest in which speakers say the same sentences.
        fit_minutes: of recordings to fit on.

    Raises:
        UserError: no two speakers of the same two sentences; nothing to fit on; the extractor cannot be loaded.
    """
    extractor = make_extractor(config.units)
    codebook = _codebook(config, extractor, fit_minutes, say)
    codebook.require(extractor)
    recordings = [(entry.text, entry.speaker, samples) for entry, samples in _recordings([sentences], config)]
    if not recordings:
        raise UserError(f"{sentences}: holds no recording that can be used")
    return measure(list(speak_in_units(codebook, extractor, recordings)))


def _codebook(config: PrepConfig, extractor: Extractor, fit_minutes: float, say: Say) -> Codebook:
    made = Layout(config.out).codebook
    if made.is_file():
        held = Codebook.load(made)
        if (held.extractor, held.extractor_fingerprint) == (extractor.name, extractor.fingerprint):
            say(f"{extractor.name}: codebook {held.fingerprint} of {made}")
            return held
    if config.units.codebook:
        say(f"{extractor.name}: codebook {config.units.codebook}")
        with Inputs(config.reading).local(config.units.codebook) as file:
            return import_codebook(file, extractor)
    features, positions = list[np.ndarray](), list[np.ndarray]()
    frames, wanted = 0, fit_minutes * 60 * float(extractor.rate)
    for _, samples in _recordings(config.manifests, config, seed=config.seed, split="train"):
        (found,) = extractor.features([samples])
        place = extractor.positions(len(found))
        features.append(found)
        if place is not None:
            positions.append(place)
        frames += len(found)
        if frames >= wanted:
            break
    if not features:
        where = ", ".join(config.manifests) or "manifests"
        raise UserError(f"{where}: no training recording to fit a codebook on")
    say(f"{extractor.name}: codebook fitted on {frames / float(extractor.rate) / 60:.1f} minutes")
    joined, place = np.concatenate(features), np.concatenate(positions) if positions else None
    centres, mean = centres_of(joined, place, extractor.rate, config.units.codebook_size, config.seed)
    made_by = extractor.name, extractor.fingerprint, extractor.rate
    return Codebook(centres, *made_by, position_mean=mean, settings=extractor.settings)


def _recordings(
    manifests: "list[Path] | tuple[str, ...]", config: PrepConfig, seed: int | None = None, split: str = ""
) -> Iterator[tuple[manifest.Entry, np.ndarray]]:
    """(entry, float32 [N] at 16 kHz) of a manifest, in a random order where a seed is given. What cannot be used is
    said on stderr."""

    def left_out(where: str, rejection: Rejection) -> None:
        print(f"left out: {where}: {rejection}"[:_KEPT], file=sys.stderr)

    entries = [entry for entry in manifest.read(manifests, left_out) if not split or entry.split == split]
    order = range(len(entries)) if seed is None else np.random.default_rng(seed).permutation(len(entries))
    for entry in (entries[i] for i in order):
        try:
            yield entry, load(path_of(entry.audio), entry.start, entry.end, config.audio, channel=entry.channel).samples
        except Rejection as rejection:
            left_out(entry.id, rejection)
