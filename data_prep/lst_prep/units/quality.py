"""How well units tell words apart, and how little they tell of the voice: the same sentences by several speakers.

| measure | of | good |
|---|---|---|
| unit error, same words | a sentence in two voices | low |
| unit error, other words | two sentences in two voices | high |
| retrieval | the sentence of another voice that is nearest: is it the same one? | all |
| voice | the speaker of a frame guessed from its unit; learned on half of the sentences, tested on the rest | chance |

Unit error is the edit distance of two unit sequences, runs of one unit counted once, over the longer one's length.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lst_prep.units.codebook import Codebook
from lst_prep.units.extractor import Extractor
from megatron_lst.errors import UserError


@dataclass(frozen=True)
class Utterance:
    """One sentence by one speaker. units: int [F]."""

    text: str
    speaker: str
    units: np.ndarray


@dataclass(frozen=True)
class Measured:
    """A share and of how many it is one."""

    value: float
    count: int


@dataclass(frozen=True)
class Quality:
    """The measures of the table above.

    Attributes:
        same, other: unit error of the same words and of other words; `count` pairs.
        retrieved: share of sentences that are found; `count` tries.
        voice: share of frames whose speaker is guessed; `count` frames. `voice_chance`: the most frequent speaker's.
        used: units that occur.
    """

    same: Measured
    other: Measured
    retrieved: Measured
    voice: Measured
    voice_chance: float
    used: int


def edit_distance(a: np.ndarray, b: np.ndarray) -> int:
    """Insertions, deletions and substitutions that make `a` of `b`: int [N], int [M]."""
    steps = np.arange(len(b) + 1)
    row = steps.copy()  # of the empty beginning of `a`
    for item in a:
        changed = np.minimum(row[:-1] + (b != item), row[1:] + 1)
        row = np.append(row[0] + 1, changed)
        row = np.minimum.accumulate(row - steps) + steps  # insertions, left to right
    return int(row[-1])


def unit_error(a: np.ndarray, b: np.ndarray) -> float:
    """Edit distance of two sequences without repeats, over the longer one's length: 0 to 1."""
    a, b = without_repeats(a), without_repeats(b)
    return edit_distance(a, b) / max(len(a), len(b), 1)


def without_repeats(units: np.ndarray) -> np.ndarray:
    """int [F] -> int [<= F], each run of one unit once."""
    return units[np.append(True, units[1:] != units[:-1])] if len(units) else units


def measure(utterances: Sequence[Utterance]) -> Quality:
    """Compare every sentence of every speaker with every one of every other speaker.

    Raises:
        UserError: there are not two speakers of the same two sentences.
    """
    spoken: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for utterance in utterances:
        spoken[utterance.speaker].setdefault(utterance.text, utterance.units)
    same, other = list[float](), list[float]()
    found = tries = 0
    for speaker, own in sorted(spoken.items()):
        for other_speaker, theirs in sorted(spoken.items()):
            shared = [text for text in own if text in theirs]
            if other_speaker == speaker or len(shared) < 2:
                continue
            errors = np.array([[unit_error(own[a], theirs[b]) for b in shared] for a in shared])
            apart = ~np.eye(len(shared), dtype=bool)
            if speaker < other_speaker:  # the error of b and a is that of a and b
                same += errors.diagonal().tolist()
                other += errors[apart].tolist()
            nearest_other = np.where(apart, errors, np.inf).min(1)
            found += int((errors.diagonal() < nearest_other).sum())  # a tie is no find
            tries += len(shared)
    if not tries:
        raise UserError("units-quality: the manifest has no two speakers who say the same two sentences")
    voice, chance = _voice(utterances)
    return Quality(
        Measured(float(np.mean(same)), len(same)),
        Measured(float(np.mean(other)), len(other)),
        Measured(found / tries, tries),
        voice,
        chance,
        len(np.unique(np.concatenate([u.units for u in utterances]))),
    )


def _voice(utterances: Sequence[Utterance]) -> tuple[Measured, float]:
    """Frames whose speaker is guessed from the unit, learned on every second sentence."""
    texts = {text: number for number, text in enumerate(sorted({u.text for u in utterances}))}
    speakers = sorted({u.speaker for u in utterances})
    size = int(max(u.units.max(initial=0) for u in utterances)) + 1
    counts = np.zeros((2, size, len(speakers)))
    for utterance in utterances:
        counts[texts[utterance.text] % 2, :, speakers.index(utterance.speaker)] += np.bincount(
            utterance.units, minlength=size
        )
    learned, tested = counts
    prior = learned.sum(0) / max(learned.sum(), 1)
    guess = (learned + prior).argmax(1)  # a unit that was never heard: the most frequent speaker
    total = tested.sum()
    right = tested[np.arange(size), guess].sum()
    return Measured(float(right / total), int(total)), float(tested.sum(0).max() / total)


def speak_in_units(
    codebook: Codebook, extractor: Extractor, recordings: Sequence[tuple[str, str, np.ndarray]]
) -> Iterator[Utterance]:
    """(text, speaker, float32 [N] at 16 kHz) -> utterances."""
    for text, speaker, samples in recordings:
        (units,) = codebook.units(extractor, [samples])
        yield Utterance(text, speaker, units)


def markdown(found: Mapping[str, Quality]) -> str:
    """One line a configuration, each figure with its count."""
    head = "| units | used | unit error, same words | other words | sentences found | speaker guessed from a unit |"
    lines = [head, "|---|---:|---:|---:|---:|---:|"]
    for name, q in found.items():
        cells = [
            name,
            str(q.used),
            f"{q.same.value:.2f} (of {q.same.count:,} pairs)",
            f"{q.other.value:.2f} (of {q.other.count:,} pairs)",
            f"{round(q.retrieved.value * q.retrieved.count)} of {q.retrieved.count}",
            f"{q.voice.value:.0%} of {q.voice.count:,} frames (chance {q.voice_chance:.0%})",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
