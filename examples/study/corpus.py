"""The study's data: real audio as units of Whisper's encoder, aligned text, and text alone, as shard sets.

The embedded corpus, and more passages of its text spoken by flite's voices.  Everything goes through `lst prep`: the
codebook is fitted on the embedded corpus, as the demo's is; the tokenizer is a small one of the text itself, since
32,000 pieces would be most of so small a model.
"""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
import zstandard

from lst_prep import pipeline
from lst_prep.config import AlignConfig, JobConfig, PrepConfig, ShardConfig, TextSource, UnitsConfig
from lst_prep.engine import lock
from lst_prep.layout import Layout
from megatron_lst.errors import UserError
from megatron_lst.files import write_bytes, write_text
from megatron_lst.progress import Progress

EMBEDDED = Path(__file__).resolve().parents[2] / "data_prep" / "corpus"
SETS = {"speech": "speech", "text": "text", "held-out": "heldout-speech"}
"""What the study calls a shard set, and what a preparation calls it."""
RATE = 16_000


@dataclass(frozen=True)
class Corpus:
    """What is made.

    Attributes:
        minutes, heldout_minutes: speech that flite adds to the embedded corpus; 0 and 0: nothing.
        voices: of flite, in turns.
        passage_words: of a spoken passage; consecutive verses of one chapter.
        text_pieces: of the tokenizer.
        codebook_size: speech units.
        seed: of the order of passages.
    """

    minutes: float = 150.0
    heldout_minutes: float = 24.0
    voices: tuple[str, ...] = ("slt", "rms", "awb", "kal16")
    passage_words: int = 150
    text_pieces: int = 1024
    codebook_size: int = 501
    seed: int = 0


def write_corpus(corpus: Corpus, folder: Path, jobs: int) -> dict[str, Path]:
    """Make what is missing of the shard sets.

    Returns:
        The folder of each of SETS.

    Raises:
        UserError: flite is needed and not installed; a preparation of other choices lies there.
    """
    tokenizer, manifests = folder / "tokenizer.model", (str(EMBEDDED / "manifest.jsonl"),)
    if not tokenizer.is_file():
        _train_tokenizer(tokenizer, corpus.text_pieces)
    config = PrepConfig(
        manifests=manifests,
        text=(TextSource("kjv", str(EMBEDDED / "text/kjv.jsonl.zst"), "public domain"),),
        tokenizer=str(tokenizer),
        out=str(folder / "codebook"),
        units=UnitsConfig("whisper", codebook_size=corpus.codebook_size),
        align=AlignConfig(pronunciations=(str(EMBEDDED / "pronunciations.txt"),)),
        shards=ShardConfig(size_limit=1 << 20),
        jobs=JobConfig(workers=jobs, item_pieces=4),
    )
    if corpus.minutes or corpus.heldout_minutes:
        spoken = folder / "spoken" / "manifest.jsonl"
        if not spoken.is_file():
            _speak(corpus, spoken)
        layout = Layout(config.out)
        with lock(layout.lock):
            fitting = pipeline.Preparation(config)
            fitting.manifest()
            fitting.codebook()
        units = replace(config.units, codebook=str(layout.codebook))
        config = replace(config, manifests=(*manifests, str(spoken)), units=units)
    config = replace(config, out=str(folder / "shards"))
    if not (Path(config.out) / "summary.json").is_file():
        pipeline.run(config)
    return {name: Path(config.out) / made for name, made in SETS.items()}


def chapters() -> list[tuple[str, list[str], str]]:
    """(name, verses, split) of the embedded text."""
    raw = zstandard.ZstdDecompressor().stream_reader((EMBEDDED / "text/kjv.jsonl.zst").read_bytes()).read()
    lines = map(json.loads, raw.decode().splitlines())
    return [(line["id"], line["text"].split("\n"), line["split"]) for line in lines]


def _train_tokenizer(path: Path, pieces: int) -> None:
    """A SentencePiece model of the training text, whose characters cover the transcripts too."""
    import sentencepiece

    transcripts = [json.loads(line)["text"] for line in (EMBEDDED / "manifest.jsonl").read_text().splitlines()]
    verses = [verse for _, of_chapter, split in chapters() if split == "train" for verse in of_chapter]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*verses, *transcripts]),
        model_writer=model,
        vocab_size=pieces,
        model_type="bpe",
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    write_bytes(path, model.getvalue())


def passages(split: str, words: int, seed: int) -> Iterator[tuple[str, str]]:
    """(name, text) of consecutive verses of a chapter, `words` words or a little more; chapters in keyed order."""
    own = [(name, verses) for name, verses, of in chapters() if of == split]
    found = []
    for name, verses in own:
        held: list[str] = []
        for number, verse in enumerate(verses, 1):
            held.append(verse)
            if sum(len(v.split()) for v in held) >= words:
                found.append((f"{name}-{number}", " ".join(held)))
                held = []
    yield from (found[i] for i in np.random.default_rng(seed).permutation(len(found)))


def _speak(corpus: Corpus, manifest: Path) -> None:
    """Write the spoken passages beside their manifest; recordings that are there stay."""
    if not shutil.which("flite"):
        raise UserError(
            "study: flite speaks the passages and is not installed: apt-get install flite, or use QUICK=1, which is "
            "content with the embedded corpus"
        )
    from make_corpus import speak

    entries, done = list[dict[str, object]](), 0.0
    goals = {"heldout": 60 * corpus.heldout_minutes, "train": 60 * corpus.minutes}
    with Progress("study, seconds spoken", int(sum(goals.values()))) as progress:
        for split, wanted in goals.items():
            texts, enough = passages(split, corpus.passage_words, corpus.seed), done + wanted
            while done < enough:
                name, text = next(texts)
                voice = corpus.voices[len(entries) % len(corpus.voices)]
                path = manifest.parent / f"{voice}-{name}.flac"
                if not path.is_file():
                    audio = speak(text, voice)
                    held = io.BytesIO()
                    soundfile.write(held, 0.6 * audio / np.abs(audio).max(), RATE, "PCM_16", format="FLAC")
                    write_bytes(path, held.getvalue())
                done += soundfile.info(path).duration
                entries.append(
                    {
                        "id": path.stem,
                        "audio": path.name,
                        "text": text,
                        "speaker": voice,
                        "source": "kjv-flite",
                        "license": "public domain text; flite's voices",
                        "split": split,
                    }
                )
                progress.update(int(done), split)
    write_text(manifest, "".join(json.dumps(entry) + "\n" for entry in entries))


def plain(corpus: Corpus) -> dict[str, object]:
    """The corpus as JSON knows it."""
    return asdict(corpus)
