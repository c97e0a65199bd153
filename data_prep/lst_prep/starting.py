"""`lst init`: a folder of recordings with transcripts -> a manifest, and configurations whose sizes fit it."""

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile

from lst_prep import corpora, manifest, text_files
from lst_prep.config import ReadingConfig, TextSource
from lst_prep.corpora import Corpus, Skipped
from lst_prep.corpora.corpus import AUDIO
from lst_prep.languages.tags import ENGLISH, base_language, language_tag
from lst_prep.manifest import Entry
from lst_prep.places import is_address
from lst_prep.reading import CannotRead, Inputs
from lst_prep.units.whisper import EMBEDDED
from megatron_lst.config.load import dump_yaml
from megatron_lst.errors import UserError
from megatron_lst.files import write_text

PROMPT_SECONDS = 4.0
"""At most so much of a held-out recording is the first prompt, and at most half: after all of it nothing follows."""
HELD_OUT_EVERY, HELD_OUT_EVERY_FIRST, HELD_OUT_FIRST = 20, 5, 100
"""Of pieces that a corpus does not hold out itself, where they have words enough. Of the first ones more: preparation
rejects a few, and a small folder needs some that stay."""
HELD_OUT_WORDS = 4
"""A held-out piece of one word would take that word from every text: shorter ones train."""
HELD_OUT_RATE = 4.0
"""Words a second of a held-out piece, at most."""
UNKNOWN = "und"
"""The tag of a language that nobody said."""
RATE = 25
"""Units a second."""


@dataclass(frozen=True)
class Size:
    """A model and a run for data of up to `hours`.

    Attributes:
        model, training: YAML mappings.
        units: of a row.
        passes: over the data.
    """

    hours: float
    model: str
    units: int
    batch: int
    training: str
    passes: int


_SMALL = "hidden: 192, layers: 4, heads: 4, local_hidden: 96, local_heads: 4, decoder_layers: 2, window: 128"
_MIDDLE = "hidden: 512, layers: 8, heads: 8, local_hidden: 256, local_heads: 4, decoder_layers: 4, window: 256"
_LARGE = "hidden: 1024, layers: 12, heads: 8, local_hidden: 512, local_heads: 8, decoder_layers: 6"
_PAPER = "hidden: 1280, layers: 17, heads: 10, local_hidden: 640, queries: 2, decoder_layers: 6, local_heads: 10"
SIZES = (
    Size(5, f"{{{_SMALL}, init_std: 0.06}}", 256, 4, "micro_batch: 2, precision: fp32, lr: 3e-3", 20),
    Size(100, f"{{{_MIDDLE}, init_std: 0.04}}", 512, 16, "micro_batch: 4, precision: bf16, lr: 1e-3", 10),
    Size(2000, f"{{{_LARGE}, init_std: 0.03}}", 2048, 64, "micro_batch: 4, precision: bf16, lr: 6e-4", 4),
    Size(float("inf"), f"{{{_PAPER}}}", 4096, 128, "micro_batch: 4, precision: bf16, lr: 4e-4", 2),
)


@dataclass(frozen=True)
class Found:
    """What lies in the folder.

    Attributes:
        kind: the layout, a key of READERS or `manifest`.
        pieces, held_out: manifest lines, and those of them that are held out.
        seconds: of audio. words: of its transcripts.
        low_rate: files recorded below 16 kHz.
        notes: what was left out, for people.
        prompt: a recording that is held out.
        prompt_seconds: of its beginning, that the model may go on with.
    """

    kind: str
    pieces: int
    held_out: int
    seconds: float
    words: int
    low_rate: int
    notes: tuple[str, ...]
    prompt: str
    prompt_seconds: float


def recognise(root: Path) -> str:
    """The layout of a folder of recordings, or of one manifest.

    Raises:
        UserError: none that is known, or several; says what was found and what is known.
    """
    if root.is_file():
        if root.suffix == ".jsonl":
            return "manifest"
        raise UserError(f"{root}: a file that is no .jsonl manifest; give a folder of recordings, or a manifest")
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    suffixes, found, beside = Counter[str](), dict[str, str](), 0
    for place, folders, files in os.walk(root, followlinks=True):
        names = set(files)
        if "clips" in folders and names & {"validated.tsv", "train.tsv"}:
            found.setdefault("common-voice", place)
            folders.remove("clips")
        if "metadata.csv" in names and "wavs" in folders:
            found.setdefault("ljspeech", place)
            folders.remove("wavs")
        if {"dataset_info.json", "dataset_dict.json"} & names:
            found.setdefault("huggingface", place)
        if "transcripts.txt" in names and "audio" in folders:
            found.setdefault("mls", place)
        if any(name.endswith(".trans.txt") for name in names):
            found.setdefault("librispeech", place)
        stems = {os.path.splitext(name)[0] for name in names if name.endswith((".txt", ".lab"))}
        for name in names:
            stem, suffix = os.path.splitext(name)
            suffixes[suffix.lower()] += 1
            beside += suffix.lower() in AUDIO and stem in stems
    if not found and beside:
        return "folder"
    if len(found) == 1:
        return next(iter(found))
    if found:
        listed = ", ".join(f"{kind} in {place}" for kind, place in found.items())
        raise UserError(f"{root}: several layouts: {listed}; give the folder of one")
    sounds = sum(count for suffix, count in suffixes.items() if suffix in AUDIO)
    seen = ", ".join(f"{count:,} {suffix or 'without a suffix'}" for suffix, count in suffixes.most_common(5))
    what = f"{sounds:,} audio files and no transcript of any" if sounds else "no audio that libsndfile reads"
    raise UserError(
        f"{root}: {what} ({seen or 'it is empty'}). Known are: a .txt or .lab beside each audio file; metadata.csv and "
        "wavs/ (LJSpeech); *.trans.txt (LibriSpeech); transcripts.txt and audio/ (MLS); validated.tsv and clips/ "
        "(Common Voice); datasets' save_to_disk; a manifest (.jsonl). More: lst prep manifest --help"
    )


def collect(root: Path, kind: str, out: Path) -> Found:
    """Write the manifest of a corpus, with a part held out, and count what it holds.

    Raises:
        UserError: not one piece is any good.
        CannotRead: see `corpora.read`.
    """
    notes, skipped = Counter[str](), Skipped()
    entries = _entries(root, kind, out, skipped, notes)
    seconds, words, low, held, prompt, begun, bad = 0.0, 0, 0, 0, "", 0.0, Counter[str]()

    def counted() -> Iterator[Entry]:
        nonlocal seconds, words, low, held, prompt, begun
        own, eligible = False, 0
        for entry in entries:
            if not entry.text.strip():
                bad["no transcript"] += 1
                continue
            try:
                with Inputs(ReadingConfig(attempts=1)).open(entry.audio) as file:
                    about = soundfile.info(file)
            except (CannotRead, OSError, RuntimeError):
                bad["audio that libsndfile cannot read"] += 1
                continue
            own |= entry.split == "heldout"
            length, count = (entry.end or about.duration) - (entry.start or 0.0), len(entry.text.split())
            sound = count >= HELD_OUT_WORDS and 1.0 <= length <= 2.0 * count  # preparation will not reject it
            sound &= count <= HELD_OUT_RATE * length
            eligible += sound
            every = HELD_OUT_EVERY_FIRST if eligible <= HELD_OUT_FIRST else HELD_OUT_EVERY
            if not own and sound and eligible % every == every // 2:
                entry = replace(entry, split="heldout", document="")
            seconds += length
            words += count
            low += about.samplerate < 16000
            if entry.split == "heldout":
                held += 1
                if not prompt and entry.start is None and length < 30 and not is_address(entry.audio):
                    prompt, begun = entry.audio, min(round(length / 2, 1), PROMPT_SECONDS)
            yield entry

    count = manifest.write(out, counted())
    said = skipped.counts + notes + bad
    if not count:
        raise UserError(f"{root}: not one piece is any good: {dict(said)}")
    examples = {why: f" (for instance {example})" for why, example in skipped.examples.items()}
    lines = tuple(f"{number:,} left out: {why}{examples.get(why, '')}" for why, number in said.most_common())
    return Found(kind, count, held, seconds, words, low, lines, prompt, begun)


def _entries(root: Path, kind: str, out: Path, skipped: Skipped, notes: Counter[str]) -> Iterable[Entry]:
    if kind != "manifest":
        return corpora.read(kind, Corpus(root, skipped=skipped, extracted=out.with_name("audio")))
    return manifest.read([root], lambda where, why: notes.update([f"{why.reason}, such as {where}"]))


def words_of_text(path: Path) -> int:
    """Words of a text source, about. Raises UserError: there is no text of a known form."""
    source, total = TextSource("text", str(path)), 0
    for file in text_files.source_files(source):
        for record in text_files.read_records(source, file, lambda *_: None):
            total += len(record.text.split())
    if not total:
        raise UserError(f"{path}: no text in it")
    return total


def is_english(language: str) -> bool:
    """Whether a tag is one of English. Raises UserError: it is no tag."""
    if language and language_tag(language) is None:
        raise UserError(f"--language {language!r} is no tag such as en, it or pt-BR")
    return base_language(language_tag(language) or "") == ENGLISH


def _relative(path: Path, project: Path) -> str:
    """How a configuration in the project names a path: relative within the project's parent, else absolute."""
    whole, parent = path.resolve(), project.resolve().parent
    return os.path.relpath(whole, project.resolve()) if whole.is_relative_to(parent) else str(whole)


def write_project(project: Path, audio: Path, found: Found, language: str, text: Path | None, text_words: int) -> str:
    """PROJECT/prep.yaml and PROJECT/train.yaml. Returns the next commands, for people."""
    timed = is_english(language)
    tokens = found.seconds * RATE + 1.4 * (found.words + text_words)  # 1.4 pieces a word, an estimate
    size = next(size for size in SIZES if max(found.seconds / 3600, text_words / 1e7) <= size.hours)
    write_text(project / "prep.yaml", _preparation(project, audio, found, language, timed, text, tokens))
    write_text(project / "train.yaml", _training(found, timed, text is not None, tokens, size))
    return "\n".join(_commands(project, found))


def _preparation(
    project: Path, audio: Path, found: Found, language: str, timed: bool, text: Path | None, tokens: float
) -> str:
    embedded = EMBEDDED.is_dir()
    entries = next((size for size in (501, 256, 128, 64) if found.seconds * RATE >= 40 * size), 32)
    limit = min(max(1 << 16, 1 << (max(int(tokens * 4 / 64), 1) - 1).bit_length()), 1 << 26)
    aligner = (
        "pocketsphinx  # English: words get times, and patches follow them (docs/data-prep.md has more aligners)"
        if timed
        else "none  # words get no times; import, ctc or whisper give them: docs/languages.md"
    )
    lines = [
        f"# {found.pieces:,} recordings of {audio} ({found.kind}), {found.seconds / 60:.0f} minutes, as training data.",
        f"#   lst prep run {shlex.quote(str(project / 'prep.yaml'))}",
        "# Paths count from this file. Every key: docs/preparation.md, or lst config keys prep.",
        "out: data",
        f"manifests: [manifest.jsonl]  # {found.held_out:,} recordings are held out in it",
    ]
    if text is not None:
        lines += [f"text: [{dump_yaml({'name': text.stem, 'path': _relative(text, project)}, flow=True).strip()}]"]
    lines += ["tokenizer: mistral-v1  # or the path of a SentencePiece .model, or of a tokenizer.json"]
    lines += ["units:"]
    if embedded:
        lines += ["  extractor: whisper  # the encoder that comes with the repository, trained on English"]
    else:
        lines += ["  extractor: mfcc  # needs no weights; whisper and hubert, with units.model, are better"]
    lines += [f"  codebook_size: {entries}  # at least 40 frames an entry; train.yaml says it too (vocabulary)"]
    lines += [f"language: {language or UNKNOWN}  # a tag, such as en or pt-BR; {UNKNOWN}: not said"]
    lines += ["align:", f"  aligner: {aligner}"]
    if found.low_rate:
        lines += [f"audio: {{min_rate: 8000}}  # {found.low_rate:,} files were recorded below 16 kHz"]
    lines += [f"shards: {{size_limit: {limit}}}  # bytes: some dozens of shards"]
    return "\n".join(lines) + "\n"


def _training(found: Found, timed: bool, with_text: bool, tokens: float, size: Size) -> str:
    entries = next((size for size in (501, 256, 128, 64) if found.seconds * RATE >= 40 * size), 32)
    a_step = size.batch * size.units * 2.5  # tokens in a unit, an estimate
    steps = int(min(max(size.passes * tokens / a_step, 100), 200_000))
    steps -= steps % 20
    strategy = "curriculum  # static patches first, then along words" if timed else "static  # words have no times"
    lines = [
        f"# A model of {found.seconds / 3600:.1f} hours of speech: {size.passes} passes, about.",
        "# Paths count from this file. Every key: docs/configuration.md, or lst config keys run.",
        f"vocabulary: {{speech_size: {entries}}}",
        f"model:\n  {size.model}",
        f"patching:\n  strategy: {strategy}",
        "data:",
        f"  units: {size.units}  # of a row; a unit is a text piece or a patch of speech",
        "  workers: 1",
        "  sources:",
        "    - {name: speech, kind: interleaved, shards: [data/speech], weight: 1}",
    ]
    if with_text:
        lines += ["    - {name: text, kind: text, shards: [data/text], weight: 2}"]
    lines += [
        "  validation:",
        "    - {name: speech, kind: interleaved, shards: [data/heldout-speech]}",
        "training:",
        f"  steps: {steps}",
        f"  global_batch: {size.batch}",
        *(f"  {part}" for part in size.training.split(", ")),
        f"  warmup_steps: {max(10, steps // 20)}",
        f"evaluation: {{every: {max(1, steps // 4)}, rows: 8}}",
        f"checkpoint: {{every: {max(1, steps // 4)}, keep: 2}}",
        "run: {dir: run}",
    ]
    if not found.held_out:
        start = lines.index("  validation:")
        del lines[start : start + 2]
        lines = [line for line in lines if not line.startswith("evaluation:")]
    return "\n".join(lines) + "\n"


def _commands(project: Path, found: Found) -> list[str]:
    """What to type next, in order."""
    at = shlex.quote(str(project))
    said = "--text 'Good morning'"
    if found.prompt:
        said = f"--audio {shlex.quote(os.path.relpath(found.prompt))} --prompt-seconds {found.prompt_seconds:g}"
    return [
        f"lst prep run {at}/prep.yaml",
        f"lst train {at}/train.yaml",
        f"lst report {at}/run",
        f"lst export {at}/run {at}/model",
        f"lst generate {at}/model {said} --to speech --out {at}/sample.wav",
    ]
