"""What an export needs beside its weights: tokenizer, codebook and licences, so that the folder alone goes from text or
audio to text or audio."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_lst.config.schema import Config
from megatron_lst.errors import UserError
from megatron_lst.vocabulary import Vocabulary

OWN_EXTRACTORS = ("mfcc", "whisper", "hubert")
"""Features that this project makes; units of other codecs are made outside it."""
SAMPLES = (
    "In the beginning was the Word.",
    "  leading, trailing and  double spaces ",
    "Numbers 3.14159, 2,000 and 42%; a 'quote', an e-mail a.b@c.org!",
    "Größe, naïve, señor, 中文字, русский, 🙂 and\ttabs\nand lines",
)


@dataclass(frozen=True)
class Companions:
    """Files that go into an export.

    Attributes:
        metadata: what the run recorded of its shards.
        tokenizer, codebook: files with the recorded fingerprints; None: there are none, or they are not wanted.
        units_model: folder of the model whose features the codebook clusters.
    """

    metadata: dict[str, Any]
    tokenizer: Path | None = None
    codebook: Path | None = None
    units_model: Path | None = None

    def write(self, folder: Path, vocabulary: Vocabulary) -> list[str]:
        """Copy them into a folder. Returns sentences on what is missing there."""
        from megatron_lst.inference.export import CODEBOOK_FILE, UNITS_MODEL, tokenizer_file

        notes = []
        if self.tokenizer is not None:
            copy = folder / tokenizer_file(self.tokenizer)
            shutil.copyfile(self.tokenizer, copy)
            if problem := write_transformers_tokenizer(copy, folder, vocabulary):
                notes.append(f"no tokenizer for transformers: {problem}")
        if self.codebook is not None:
            shutil.copyfile(self.codebook, folder / CODEBOOK_FILE)
        if self.units_model is not None:
            (folder / UNITS_MODEL).mkdir()
            for path in sorted(self.units_model.iterdir()):
                if path.suffix in (".json", ".safetensors", ".txt") or path.stem in ("LICENSE", "NOTICE", "README"):
                    shutil.copyfile(path, folder / UNITS_MODEL / path.name)
        elif self.codebook is not None and (self.metadata.get("codebook") or {}).get("extractor") != "mfcc":
            notes.append("audio in needs the model of the units: `--units-model FOLDER` puts it into the export")
        return notes


def find_companions(
    run: Path, config: Config, tokenizer: str | None, codebook: str | None, units_model: Path | None, weights_only: bool
) -> Companions:
    """What a run recorded, and the files of it.

    Args:
        tokenizer, codebook: given by the user; compared with what is recorded.
        weights_only: the user does not want the files.

    Raises:
        UserError: the run has sources, and what they were made with cannot be found.
    """
    from megatron_lst.cli.models import data_fingerprints
    from megatron_lst.training.provenance import find_codebook, find_tokenizer, recorded_files

    found = data_fingerprints(run, config)
    hint = "give {option}, or --weights-only for an export that needs them given each time"
    if config.data.sources and "tokenizer" not in found and not weights_only:
        raise UserError(
            f"{run}: does not record what its ids mean (it began with an older version), and its shards are not here: "
            "export from the folder in which it was started, or pass --weights-only"
        )
    if units_model is not None and weights_only:
        raise UserError("--units-model goes along with the codebook, and --weights-only leaves that out")
    if weights_only:
        return Companions(found)
    files, near = recorded_files(run), [Path(p) for source in config.data.sources for p in source.shards]
    text = find_tokenizer(found.get("tokenizer"), near, tokenizer or str(files.get("tokenizer", "")) or None)
    book = find_codebook(found.get("codebook"), near, codebook or str(files.get("codebook", "")) or None)
    if found.get("tokenizer") and text is None:
        name = found["tokenizer"].get("name") or found["tokenizer"]["fingerprint"]
        raise UserError(f"{run}: the tokenizer {name!r} is not at hand: {hint.format(option='--tokenizer FILE')}")
    made_here = not (found.get("codec") or {}).get("encoder")  # imported tokens say how they were made
    if made_here and (found.get("codebook") or {}).get("extractor") in OWN_EXTRACTORS and book is None:
        raise UserError(
            f"{run}: the codebook {found['codebook']['fingerprint']} is not at hand: "
            f"{hint.format(option='--codebook FILE')}"
        )
    if units_model is not None:
        _check_units_model(units_model, book)
    return Companions(found, text, book, units_model or _embedded_model(book))


def _check_units_model(folder: Path, codebook: Path | None) -> None:
    """Refuse a model that does not make the units of this codebook, or whose files would not all go along."""
    from lst_prep.units import Codebook
    from lst_prep.units.opening import extractor_of

    if codebook is None:
        raise UserError(f"--units-model {folder}: the run has no codebook of units that a model makes")
    book = Codebook.load(codebook)
    if book.extractor == "mfcc":
        raise UserError(f"--units-model {folder}: the codebook is of mfcc features, which need no model")
    if not (folder / "config.json").is_file():
        raise UserError(f"--units-model {folder}: no config.json of a model")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"--units-model {folder}: no weights in .safetensors (save_pretrained writes them)")
    extractor_of(book, str(folder), device="cpu", precision="fp32")


def _embedded_model(codebook: Path | None) -> Path | None:
    """The encoder that comes with the repository, where it is here and the codebook clusters its states."""
    from lst_prep.units import Codebook
    from lst_prep.units.whisper import EMBEDDED, is_embedded

    if codebook is None or not EMBEDDED.is_dir():
        return None
    return EMBEDDED if is_embedded(Codebook.load(codebook)) else None


def write_transformers_tokenizer(source: Path, folder: Path, vocabulary: Vocabulary) -> str:
    """Write what `AutoTokenizer.from_pretrained(folder)` reads: BOS before text, units `<|unit_7|>`, markers
    `<|text|>` and `<|speech|>`, `<|pad|>`, under the model's ids.

    Returns:
        Why it was not written; empty: it was, and gives the ids of `source` for a few difficult sentences.
    """
    try:
        from tokenizers import AddedToken, Tokenizer
        from tokenizers.processors import TemplateProcessing
        from transformers import LlamaTokenizerFast, PreTrainedTokenizerFast
    except ImportError as error:
        return f"transformers is not installed ({error})"
    from lst_prep.tokenizer import load_tokenizer

    ours = load_tokenizer(str(source))
    try:
        if source.suffix == ".json":
            found = [Tokenizer.from_file(str(source))]
        else:  # with a space before the text or without one: the model's own setting
            options = ({"legacy": True, "add_prefix_space": space} for space in (True, False))
            found = [LlamaTokenizerFast(vocab_file=str(source), **o).backend_tokenizer for o in options]
    except Exception as error:  # the converter raises what it likes for a model that it does not know
        return f"{source.name} cannot be converted ({error})"
    expected = {sample: ours.encode(sample) for sample in SAMPLES}
    right = [t for t in found if all(t.encode(s, add_special_tokens=False).ids == ids for s, ids in expected.items())]
    if not right:
        return f"converted, {source.name} would give other ids"
    fast = right[0]
    if fast.get_vocab_size() != vocabulary.pieces:
        return f"{source.name} has {fast.get_vocab_size()} pieces, the vocabulary {vocabulary.pieces}"
    fast.add_tokens([AddedToken(f"<|unused_{i}|>") for i in range(vocabulary.pieces, vocabulary.text_size)])
    fast.add_tokens([AddedToken(f"<|unit_{i}|>", normalized=False) for i in range(vocabulary.speech_size)])
    fast.add_special_tokens([AddedToken(f"<|{n}|>", normalized=False) for n in ("text", "speech", "pad")])
    bos, eos = fast.id_to_token(vocabulary.bos), fast.id_to_token(vocabulary.eos)
    fast.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary.bos)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token=bos, eos_token=eos, pad_token="<|pad|>", padding_side="left",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
    ids = {"<|unit_0|>": vocabulary.text_size, "<|text|>": vocabulary.text_marker,
           "<|speech|>": vocabulary.speech_marker, "<|pad|>": vocabulary.pad}  # fmt: skip
    for token, wanted in ids.items():
        if made.convert_tokens_to_ids(token) != wanted:
            return f"{token} would be id {made.convert_tokens_to_ids(token)}, the vocabulary says {wanted}"
    made.save_pretrained(folder)
    return ""
