"""Fitting a codebook on a sample of the training pieces, and hearing what its units sound like."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lst_prep.config import PrepConfig
from lst_prep.decoding import Decoder
from lst_prep.devices import decode_threads
from lst_prep.items import MODEL_SECONDS, AheadWork, Stopwatch, Work
from lst_prep.layout import Layout
from lst_prep.loading import Rejections, batches, one_by_one
from lst_prep.rejection import Rejection
from lst_prep.stages import arrays, save_arrays
from lst_prep.units import Codebook, Extractor, make_extractor
from lst_prep.units.codebook import fit, position_mean, without_position
from lst_prep.units.mfcc import COEFFICIENTS, MfccExtractor
from megatron_lst.documents.heldout import HeldOut
from megatron_lst.errors import UserError

SAMPLE = "codebook"
"""The stage that samples features to fit on."""
_FIRST_WAVE = 4
"""Items that are sampled before it is known what an item gives."""
_AROUND_SECONDS = 0.34
"""Places on each side that share a mean. Of tiny.en, speech heard 7 s later keeps 91 to 93 % of its units
with 0.3 s (codebooks fitted on 12 to 24 recordings), 83 % with 0.6 s: positions turn faster than that."""


@dataclass(frozen=True)
class _Sample:
    """Frames to fit on.

    Attributes:
        features: float32 [F, dim].
        positions: int [F], `Extractor.positions`; None where the extractor knows none.
        cepstra: float32 [F, 13], normalised MFCC of the same frames; None where the features are MFCC themselves, or
            their rate is none of MFCC's.
    """

    features: np.ndarray
    positions: np.ndarray | None
    cepstra: np.ndarray | None


def fit_codebook(
    layout: Layout, config: PrepConfig, extractor: Extractor, do: Callable[[range], list[dict[str, Any]]]
) -> Codebook:
    """Centres of `units.codebook_size` clusters, and the mean cepstra of each.

    Args:
        do: does those items of the stage SAMPLE that are not done, and returns the results of all of them.

    Raises:
        UserError: there is not enough audio; names the first piece that was rejected.
    """
    sample, rejections = _sample(layout, config, extractor, do)
    try:
        centres, place = centres_of(
            sample.features, sample.positions, extractor.rate, config.units.codebook_size, config.seed
        )
    except UserError as error:
        if not rejections:
            raise
        first = rejections[0]
        raise UserError(
            f"{error}; {len(rejections)} pieces were rejected, the first, {first['id']}, as "
            f"{first['reason']}: {first['detail']}"
        ) from error
    made_by = extractor.name, extractor.fingerprint, extractor.rate
    codebook = Codebook(centres, *made_by, position_mean=place, settings=extractor.settings)
    if sample.cepstra is not None:
        units = codebook.encode(sample.features, sample.positions)
        codebook.sound = mean_by_unit(units, sample.cepstra, len(centres))
    return codebook


def centres_of(
    features: np.ndarray, positions: np.ndarray | None, rate: Fraction, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Centres and, where features know their place in a window, the mean of each place, which is taken away first.

    Args:
        features: float32 [F, dim].
        positions: int [F] or None, `Extractor.positions`.

    Returns:
        float32 [size, dim], and float32 [P, dim] or None.
    """
    place = None
    if positions is not None and len(features):
        place = position_mean(features, positions, 2 * round(_AROUND_SECONDS * rate) + 1)
        features = without_position(features, positions, place)
    return fit(features, size, seed), place


def mean_by_unit(units: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """Mean of the frames of each unit: int [F], float32 [F, C] -> float32 [size, C], 0 for a unit that has none."""
    sums = np.zeros((size, values.shape[1]))
    np.add.at(sums, units, values)
    return (sums / np.maximum(np.bincount(units, minlength=size), 1)[:, None]).astype(np.float32)


def sample_order(config: PrepConfig, items: int) -> np.ndarray:
    """Items of pieces in the random order, fixed by the seed, in which they are sampled."""
    return np.random.default_rng(config.seed).permutation(items)


def sample_factory(config: PrepConfig) -> Work:
    """Features of the training pieces of an item, the n-th of the random order. Writes an .npz: `features` float32
    [F, dim], and `positions` and `cepstra` where there are any, see `_Sample`."""
    layout, extractor = Layout(config.out), make_extractor(config.units)
    order = sample_order(config, len(layout.pieces))
    threads = decode_threads(config.jobs.decode_threads, config.neural_units, config.units.device)
    decoder = Decoder(layout, config, HeldOut.load(layout.heldout), threads, transcribed=False)

    def expect(number: int | None) -> None:
        decoder.expect(None if number is None else int(order[number]))

    heard_as_cepstra = extractor.name != "mfcc" and (100 / extractor.rate).denominator == 1
    listener = MfccExtractor(extractor.rate) if heard_as_cepstra else None

    def work(number: int) -> dict[str, Any]:
        parts, rejections, inputs = list[_Sample](), Rejections(), layout.inputs(config)
        seconds, frames, model = 0.0, 0, Stopwatch()
        usable = decoder.pieces(int(order[number]), rejections, inputs)
        for batch in batches(piece for piece in usable if piece[1].split == "train"):
            samples = [sound.samples for *_, sound in batch]
            with model:
                made = one_by_one(extractor.features, samples)
            for features, audio in zip(made, samples, strict=True):
                if not isinstance(features, Rejection):
                    parts.append(_frames_of(extractor, features, audio, listener))
                    frames += len(parts[-1].features)
            seconds += sum(sound.seconds for *_, sound in batch)
            if frames >= config.units.fit_frames:
                break
        sample = _joined(parts, config.units.fit_frames, extractor.dim)
        found = {name: array for name, array in vars(sample).items() if array is not None}
        return {
            "files": save_arrays(layout.item(SAMPLE, number, ".npz"), found),
            "audio_seconds": seconds,
            "frames": len(sample.features),
            "rejections": rejections.all,
            "files_read": inputs.tried,
            MODEL_SECONDS: model.seconds,
        }

    return AheadWork(work, expect, lambda number: decoder.end(int(order[number])), decoder.close)


def _sample(
    layout: Layout, config: PrepConfig, extractor: Extractor, do: Callable[[range], list[dict[str, Any]]]
) -> tuple[_Sample, list[dict[str, Any]]]:
    """Features of training pieces, until there are enough; and what could not be used on the way.

    What an item gives is known when it is done, so they are done in waves; which of them are used depends on their
    order alone.
    """
    items, wanted = len(layout.pieces), config.units.fit_frames
    results = list[dict[str, Any]]()
    while len(results) < items and (found := sum(result["frames"] for result in results)) < wanted:
        more = math.ceil((wanted - found) * len(results) / found) if found else max(_FIRST_WAVE, len(results))
        results += do(range(len(results), min(items, len(results) + more)))
    parts, rejections, found = list[_Sample](), list[dict[str, Any]](), 0
    for number, result in enumerate(results):
        if found < wanted:
            found += result["frames"]
            rejections += result["rejections"]
            made = arrays(layout.item(SAMPLE, number, ".npz"))
            parts.append(_Sample(made["features"], made.get("positions"), made.get("cepstra")))
    return _joined(parts, wanted, extractor.dim), rejections


def _joined(parts: list[_Sample], most: int, dim: int) -> _Sample:
    """The first `most` frames of all parts together; those without any have no arrays beside the features."""
    parts = [part for part in parts if len(part.features)]
    if not parts:
        return _Sample(np.zeros((0, dim), np.float32), None, None)
    return _Sample(
        np.concatenate([part.features for part in parts])[:most],
        _join([part.positions for part in parts], most),
        _join([part.cepstra for part in parts], most),
    )


def _frames_of(
    extractor: Extractor, features: np.ndarray, samples: np.ndarray, listener: MfccExtractor | None
) -> _Sample:
    """What one piece adds to the sample; a model's rounding may give it a frame more than MFCC have."""
    positions = extractor.positions(len(features))
    if listener is None:
        return _Sample(features, positions, None)
    cepstra = listener.features([samples])[0][:, :COEFFICIENTS]
    count = min(len(features), len(cepstra))
    return _Sample(features[:count], None if positions is None else positions[:count], cepstra[:count])


def _join(parts: list[np.ndarray | None], most: int) -> np.ndarray | None:
    arrays = [part for part in parts if part is not None]
    return np.concatenate(arrays)[:most] if arrays else None
