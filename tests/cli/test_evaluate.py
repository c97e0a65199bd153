"""`lst eval` on held-out shards, `lst eval prepare` end to end, `lst eval asr|tts`, and `lst warm-start`."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from lst_prep.tokenizer import load_tokenizer
from megatron_lst.cli import evaluate, warm_start
from megatron_lst.cli.encoders import audio_aligner
from megatron_lst.config.load import dump_yaml
from megatron_lst.config.schema import PatchingConfig
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.format import TokenizerInfo
from megatron_lst.documents.schema import Document
from megatron_lst.documents.writing import write_set
from megatron_lst.errors import UserError
from megatron_lst.evaluation.benchmarks import PreparedItem, PreparedTask, write_prepared
from megatron_lst.evaluation.benchmarks.prepared import Side
from megatron_lst.inference import LatentSpeechTextModel, load_export, write_export
from megatron_lst.patching.row import Chunk, Row, assemble_row
from megatron_lst.patching.strategies import ALIGNED, STATIC
from megatron_lst.reference import ReferenceModel
from tests.support.tokenizers import character_tokenizer
from tests.support.toy import toy_config

CONFIG = toy_config(patching__size=4)
TOKENIZER = TokenizerInfo("aaaa", 60, 1, 2, "toy")
CODEBOOK = Codec("mfcc", (50,), fingerprint="bbbb")

LETTERS = "abcdefghijklmnopqrstuvwxyz"

app = typer.Typer()
app.add_typer(evaluate.eval_app, name="eval")
app.command()(warm_start.warm_start)


def lst(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None:
        raise result.exception
    return result.output


def document(number: int, words: int = 40) -> Document:
    rng = np.random.default_rng(number)
    ends = np.cumsum(rng.integers(2, 6, words)).astype(np.int32)
    ordinal = np.arange(words, dtype=np.int32)[:, None]
    return Document(
        id=f"d{number}", source="s", text="abcd " * words, token_ids=rng.integers(3, 60, words).astype(np.int32),
        speech_ids=rng.integers(0, 50, ends[-1]).astype(np.int16),
        word_frames=np.stack([np.append(0, ends[:-1]), ends], 1).astype(np.int32),
        word_tokens=np.hstack([ordinal, ordinal + 1]), word_chars=np.hstack([5 * ordinal, 5 * ordinal + 4]),
        word_scores=np.ones(words, np.float32), license="CC0",
    )  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = ReferenceModel(CONFIG.model, CONFIG.vocabulary).state_dict()
    metadata = {"tokenizer": {"fingerprint": "aaaa", "name": "toy"}, "codebook": {"fingerprint": "bbbb"}}
    return write_export(tmp_path_factory.mktemp("e") / "model", weights, CONFIG, metadata)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s") / "set"
    write_set(folder, [document(i) for i in range(4)], "speech", TOKENIZER, CODEBOOK)
    return folder


def test_held_out_documents_give_choices_and_bits(exported: Path, shards: Path, tmp_path: Path) -> None:
    output = lst(
        "eval", exported, "--documents", shards, "--prompt-words", 8, "--continuation-words", 4, "--units", 128,
        "--items", 9, "--out", tmp_path / "r",
    )  # fmt: skip
    content = json.loads((tmp_path / "r" / "results.json").read_text())
    done = [(t["task"], t["direction"]) for t in content["tasks"]]
    assert done == [
        ("heldout_continuation", "S->S"), ("heldout_same_voice", "S->S"), ("heldout_continuation", "T->T"),
        ("heldout_continuation", "S->T"), ("heldout_continuation", "T->S"), ("heldout_same_voice", "T->S"),
    ]  # fmt: skip
    assert all(t["items"] == 9 and t["chance"] == 0.5 for t in content["tasks"])
    # An untrained model spreads its probability over all ids: log2 of the table's rows, a token.
    bits = content["held_out"]["speech_bits_per_token"]
    assert bits == pytest.approx(np.log2(CONFIG.vocabulary.padded_size), rel=0.02)
    assert content["held_out"]["speech_bits_per_second"] == pytest.approx(25 * bits)
    assert "speech bits per second" in output
    assert any(line.startswith("held-out speech: ") and "took 0:" in line for line in output.splitlines())
    assert content["target"]["tokenizer"] == "aaaa"


def test_one_rank_alone_shows_progress(capsys: pytest.CaptureFixture[str]) -> None:
    for shown in (True, False):
        evaluate._progress("task", shown)(3, 3)
        assert ("task" in capsys.readouterr().err) == shown


def test_a_second_evaluation_keeps_the_first(exported: Path, shards: Path, tmp_path: Path) -> None:
    command = (
        "eval",
        exported,
        "--documents",
        shards,
        "--prompt-words",
        8,
        "--continuation-words",
        4,
        "--out",
        tmp_path,
    )
    (tmp_path / "results.json").write_text("{}")  # as an older version left it
    names = []
    for number in (3, 4):
        lst(*command, "--units", 128, "--items", number)
        newest = json.loads((tmp_path / "results.json").read_text())
        assert {t["items"] for t in newest["tasks"]} == {number}
        assert f"| {number} |" in (tmp_path / "results.md").read_text()
        names.append((tmp_path / "results.json").resolve().name)
    assert len(set(names)) == 2
    first = json.loads((tmp_path / names[0]).read_text())
    assert {t["items"] for t in first["tasks"]} == {3}
    assert "{}" in [path.read_text() for path in tmp_path.glob("results-*.json")]
    assert len(list(tmp_path.glob("results-*.json"))) == 3


def test_too_few_documents_cost_the_choice_and_not_the_rest(exported: Path, shards: Path, tmp_path: Path) -> None:
    """The documents have 40 words."""
    command = ("eval", exported, "--documents", shards, "--units", 128, "--out", tmp_path / "r", "--prompt-words")
    output = lst(*command, 50)
    content = json.loads((tmp_path / "r" / "results.json").read_text())
    assert content["tasks"] == []
    assert content["held_out"]["speech_bits_per_second"] > 0
    assert len(content["skipped"]) == 6
    assert "## Not evaluated" in output
    assert "choice items need two held-out speech documents of 60 words" in output
    assert "found 0" in output
    with pytest.raises(UserError, match="not evaluated, though asked for: heldout_continuation T->T"):
        lst(*command, 50, "--direction", "T->T")
    with pytest.raises(UserError, match="--direction T->X: expected one of"):
        lst(*command, 8, "--direction", "T->X")
    # A document that holds no other place gives no item in one voice: it is counted, not forgotten.
    lst(*command, 30, "--continuation-words", 10)
    tasks = json.loads((tmp_path / "r" / "results.json").read_text())
    assert len(tasks["skipped"]) == 2
    assert all("no other place of 10" in why for why in tasks["skipped"].values())
    with pytest.raises(UserError, match="nothing could be evaluated"):
        lst(*command[:-3], "--units", 1, "--out", tmp_path / "n")


@pytest.mark.parametrize(
    "options",
    [("--prompt-words", 0), ("--continuation-words", 0), ("--items", 0), ("--items", -5), ("--units", 0), ("--step", 3),
     ("--untrained",)],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(exported: Path, shards: Path, tmp_path: Path, options: tuple) -> None:
    command = ("eval", exported, "--documents", shards, "--out", tmp_path / "r")
    result = CliRunner().invoke(app, list(map(str, (*command, *options))))
    assert result.exit_code == 2 or isinstance(result.exception, UserError)
    assert not (tmp_path / "r").exists()


def test_what_cannot_be_written_is_said_before_the_work_and_printed_after(
    exported: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    command = ("eval", exported, "--documents", shards, "--prompt-words", 8, "--continuation-words", 4, "--units", 128)
    with pytest.raises(UserError, match="results cannot be written to"):
        lst(*command, "--out", tmp_path / "file" / "r")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megatron_lst.evaluation.report.write_json", full)
    result = CliRunner().invoke(app, list(map(str, (*command, "--out", tmp_path / "r"))))
    assert isinstance(result.exception, UserError)
    assert "the results above cannot be written (No space left on device)" in str(result.exception)
    assert "speech bits per second" in result.output


def test_an_export_is_scored_in_rows_of_its_own(exported: Path, shards: Path, tmp_path: Path) -> None:
    """The toy model was trained on rows of 32 units: what a run refuses, its export refuses."""
    assert load_export(exported).units == 32
    command = ("eval", exported, "--documents", shards, "--prompt-words", 32, "--continuation-words", 8)
    for units, some in (((), True), (("--units", 32), True), (("--units", 128), False)):
        lst(*command, *units, "--out", tmp_path / "r")
        found = json.loads((tmp_path / "r" / "results.json").read_text())
        refused = [why for task in found["tasks"] for why in task["refused"].values() if "the context is" in why]
        refused += [why for why in found["skipped"].values() if "the context is" in why]
        assert bool(refused) == some
        assert all("the context is 32" in why for why in refused)


def test_another_codebook_is_refused(exported: Path, tmp_path: Path) -> None:
    write_set(tmp_path / "set", [document(1)], "speech", TOKENIZER, replace(CODEBOOK, fingerprint="cccc"))
    with pytest.raises(UserError, match="cccc"):
        lst("eval", exported, "--documents", tmp_path / "set")


def test_documents_without_speech_give_a_text_loss(exported: Path, tmp_path: Path) -> None:
    """As the model scores them, each window after BOS; of so many pieces."""
    ids = np.arange(3, 53, dtype=np.int32)
    written = [
        Document(id=f"t{i}", source="s", text="abcd", token_ids=np.roll(ids, i), license="CC0") for i in range(3)
    ]
    write_set(tmp_path / "written", written, "text", TOKENIZER)
    lst("eval", exported, "--documents", tmp_path / "written", "--text-pieces", 110, "--out", tmp_path / "r")
    found = json.loads((tmp_path / "r" / "results.json").read_text())["held_out"]
    model, v = load_export(exported).model(), CONFIG.vocabulary
    total = 0.0
    for document, kept in zip(written, (50, 50, 10), strict=True):
        for begin in range(0, kept, 31):
            tokens = np.array([v.bos, *document.token_ids[begin : min(begin + 31, kept)]], np.int32)
            row = assemble_row([Chunk(tokens, np.ones_like(tokens), np.zeros(len(tokens), bool))], len(tokens), v)
            logs = model.row_logits(row).log_softmax(-1)
            total -= float(logs[np.arange(len(tokens) - 1), tokens[1:].astype(np.int64)].sum())
    assert found["heldout_text_pieces"] == 110
    assert found["heldout_text_loss"] == pytest.approx(total / 110, rel=1e-5)
    assert found["heldout_text_perplexity"] == pytest.approx(np.exp(total / 110), rel=1e-5)


def test_documents_of_neither_kind_are_refused_by_name(exported: Path, tmp_path: Path) -> None:
    written = Document(id="t", source="s", text="abcd", token_ids=np.arange(3, 9, dtype=np.int32), license="CC0")
    write_set(tmp_path / "written", [written], "speech", TOKENIZER, CODEBOOK)
    with pytest.raises(UserError, match=r"written: none of its 1 documents has speech, and it is no text set"):
        lst("eval", exported, "--documents", tmp_path / "written")


def test_the_original_without_text_is_refused(exported: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--original .*: there is no held-out text"):
        lst("eval", exported, "--documents", shards, "--original", tmp_path)


def test_recognises_and_speaks(tmp_path: Path) -> None:
    info = replace(load_tokenizer(str(character_tokenizer(tmp_path / "tokenizer.json", LETTERS))).info, size=60)
    write_set(shards := tmp_path / "set", [document(i) for i in range(4)], "speech", info, CODEBOOK)
    weights = ReferenceModel(CONFIG.model, CONFIG.vocabulary).state_dict()
    metadata = {"tokenizer": {"fingerprint": info.fingerprint, "name": str(tmp_path / "tokenizer.json")}}
    exported = write_export(tmp_path / "model", weights, CONFIG, metadata)
    output = lst("eval", "asr", exported, shards, "--limit", 2, "--max-tokens", 9)
    assert "WER" in output
    assert "x the unpatched ones" in output
    assert "global steps" in lst("eval", "tts", exported, shards, "--limit", 1, "--max-tokens", 9)


def random_codebook(path: Path) -> Path:
    """A codebook of random centres for the real MFCC features, of the exported model's size."""
    from lst_prep.units import Codebook
    from lst_prep.units.mfcc import MfccExtractor

    extractor = MfccExtractor()
    centres = np.random.default_rng(0).standard_normal((50, extractor.dim)).astype(np.float32)
    Codebook(centres, extractor.name, extractor.fingerprint).save(path)
    return path


def test_what_is_spoken_is_graded_by_a_judge(exported: Path, shards: Path, tmp_path: Path) -> None:
    """The judge is a command that hears the document's own text, then one that hears nothing of it."""
    codebook = random_codebook(tmp_path / "codebook.safetensors")
    options = ("--limit", 1, "--max-tokens", 9, "--codebook", codebook, "--judge")
    with pytest.raises(UserError, match="trained with the codebook of fingerprint bbbb"):
        lst("eval", "tts", exported, shards, *options, "true {wav}")
    weights = ReferenceModel(CONFIG.model, CONFIG.vocabulary).state_dict()
    exported = write_export(tmp_path / "model", weights, CONFIG)  # does not say which codebook it was trained with
    right = ("abcd " * 40).strip()
    hears_it = f"{sys.executable} -c 'print(\"{right}\")' {{wav}}"
    heard = lst("eval", "tts", exported, shards, *options, hears_it)
    assert "hears it: WER 0.0% of 40 words, CER 0.0% of 199 characters" in heard
    assert "(the floor): WER 0.0%" in heard
    assert "CER 100.0%" in lst("eval", "tts", exported, shards, *options, "true {wav}")


def test_spoken_questions_answered_in_speech(tmp_path: Path) -> None:
    pytest.importorskip("soundfile")
    from lst_prep.units import Codebook
    from megatron_lst.inference.vocoder import write_wav

    codebook = random_codebook(tmp_path / "codebook.safetensors")
    # A tokenizer without the letters of an accepted answer: what the model writes holds none.
    tokenizer = character_tokenizer(tmp_path / "tokenizer.json", LETTERS.replace("p", ""))
    info = {"tokenizer": {"name": str(tokenizer)}, "codebook": {"fingerprint": Codebook.load(codebook).fingerprint}}
    weights = ReferenceModel(CONFIG.model, CONFIG.vocabulary).state_dict()
    export = write_export(tmp_path / "model", weights, CONFIG, info)
    folder = tmp_path / "llama_questions"
    (folder / "audios").mkdir(parents=True)
    write_wav(folder / "audios" / "0.wav", np.random.default_rng(0).standard_normal(16000) / 10)
    (folder / "llama_questions.csv").write_text(
        "Questions,Answer,audio_filename\nWhat is the capital?,Paris,0.wav\nAnd the other?,Rome,gone.wav\n"
    )
    command = ("eval", "questions", export, folder, "--codebook", codebook)
    spoken = lst(*command, "--to", "speech", "--judge", "echo It is Paris {wav}")
    assert "1 questions: 100.0% hold an accepted answer" in spoken
    assert "1 refused" in spoken
    assert "1 questions: 0.0% hold an accepted answer" in lst(*command)
    with pytest.raises(UserError, match="need a judge"):
        lst(*command, "--to", "speech")


def test_words_and_jitter(exported: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fewer than two words"):  # the toy documents say one word over and over
        lst("eval", "words", exported, shards, "--out", tmp_path / "w.png")
    output = lst(
        "eval", "jitter", exported, shards, "--frames", "0,1", "--prompt-words", 8, "--continuation-words", 4,
        "--items", 5,
    )  # fmt: skip
    assert "| 0 ms | 5 |" in output
    assert "| 40 ms | 5 |" in output


ALIGNED_RUN = replace(
    CONFIG.patching, strategy="aligned", silence="merged", granularity="bpe", max_length=3, aligned_lag=1
)  # fmt: skip


def spaced(number: int, words: int = 40) -> Document:
    """As `document`, with a frame of silence after each word and a piece of text for the first and the other frames."""
    plain = document(number, words)
    frames = plain.word_frames + np.arange(words)[:, None]
    pieces = np.stack([frames[:, 0], frames[:, 0] + 1, frames[:, 0] + 1, frames[:, 1]], 1).reshape(-1, 2)
    rng = np.random.default_rng(number)
    ordinal = 2 * np.arange(words, dtype=np.int32)[:, None]
    return replace(
        plain, token_ids=rng.integers(3, 60, 2 * words).astype(np.int32), word_frames=frames.astype(np.int32),
        speech_ids=rng.integers(0, 50, int(frames[-1, 1]) + 1).astype(np.int16),
        word_tokens=np.hstack([ordinal, ordinal + 2]), piece_frames=pieces.astype(np.int32),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "flags", "method"),
    [
        ("eval", (), ALIGNED),
        ("eval", ("--aligned",), ALIGNED),
        ("eval", ("--static",), STATIC),
        ("jitter", (), ALIGNED),
    ],
)
def test_speech_is_cut_as_the_run_was_trained(
    command: str, flags: tuple[str, ...], method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence, granularity, max_length and lag are the run's, in every row that is scored."""
    config = replace(CONFIG, patching=ALIGNED_RUN)
    weights = ReferenceModel(config.model, config.vocabulary).state_dict()
    metadata = {"tokenizer": {"fingerprint": "aaaa", "name": "toy"}, "codebook": {"fingerprint": "bbbb"}}
    export = write_export(tmp_path / "model", weights, config, metadata)
    write_set(tmp_path / "set", [spaced(i) for i in range(4)], "speech", TOKENIZER, CODEBOOK)
    seen: list[Row] = []
    score = LatentSpeechTextModel.score

    def watched(model: LatentSpeechTextModel, rows: Sequence[Row]) -> list[np.ndarray]:
        seen.extend(rows)
        return score(model, rows)

    monkeypatch.setattr(LatentSpeechTextModel, "score", watched)
    sizes = ("--prompt-words", 8, "--continuation-words", 4, "--items", 5)
    if command == "jitter":
        lst("eval", "jitter", export, tmp_path / "set", "--frames", "0", *sizes)
    else:
        units = ("--units", 200, "--out", tmp_path / "out", "--direction", "S->S")
        lst("eval", export, "--documents", tmp_path / "set", *units, *sizes, *flags)
    spoken = [config.vocabulary.is_speech(row.tokens[first_of(row)]) for row in seen]
    speech = np.concatenate([row.patch_length[where] for row, where in zip(seen, spoken, strict=True)])
    closes = np.concatenate([closes_at_its_last_token(row)[where] for row, where in zip(seen, spoken, strict=True)])
    if method == ALIGNED:
        # Pieces of one frame and of one to four with the silence after them, the latter split at three.
        assert speech.max() == 3
        assert set(speech.tolist()) == {1, 2, 3}
        assert (closes == (speech == 3)).all(), "with the lag a patch closes late unless it has max_length tokens"
    else:
        assert speech.max() == CONFIG.patching.size == 4
        assert (closes == (speech == 4)).all()


def first_of(row: Row) -> np.ndarray:
    return np.cumsum(row.patch_length) - row.patch_length


def closes_at_its_last_token(row: Row) -> np.ndarray:
    """bool [U]: c(last(u)) = u."""
    last = np.cumsum(row.patch_length) - 1
    return np.asarray(row.closed[last] == np.arange(row.units))


def test_an_unaligned_task_is_refused_for_an_aligned_model_and_scored_statically(tmp_path: Path) -> None:
    weights = ReferenceModel(CONFIG.model, CONFIG.vocabulary).state_dict()
    export = write_export(tmp_path / "model", weights, replace(CONFIG, patching=ALIGNED_RUN), {})
    side = Side([5, 6], 9, [1, 2, 3])
    write_prepared(tmp_path / "t", PreparedTask("t", [PreparedItem("a", side, (side, Side([7], 2, [4])), 1)]))
    with pytest.raises(UserError, match=r"S->S: no item can be scored \(a: its speech has no times of text pieces"):
        lst("eval", export, "--task", tmp_path / "t")
    assert "| t | S->S | 1 |" in lst("eval", export, "--task", tmp_path / "t", "--static", "--out", tmp_path / "o")
    assert "| t | T->T | 1 |" in lst(
        "eval", export, "--task", tmp_path / "t", "--direction", "T->T", "--out", tmp_path / "p"
    )


def test_an_aligner_gives_the_times_of_words(tmp_path: Path) -> None:
    """pocketsphinx on a recording of the embedded corpus: as many words as its transcript, within its frames."""
    pytest.importorskip("pocketsphinx")
    pytest.importorskip("soundfile")
    corpus = Path(__file__).resolve().parents[2] / "data_prep" / "corpus"
    lines = map(json.loads, (corpus / "manifest.jsonl").read_text().splitlines())
    entry = next(e for e in lines if "librivox" in e["audio"])
    book = tmp_path / "codebook.safetensors"
    random_codebook(book)
    align, info = audio_aligner("pocketsphinx", book)
    assert info["fingerprint"]
    audio = corpus / entry["audio"] if (corpus / entry["audio"]).is_file() else corpus / "audio" / entry["audio"]
    words, pieces = align(audio, entry["text"], 25 * 60)
    assert pieces is None
    assert len(words) == len(entry["text"].split())
    assert all(a[1] <= b[0] for a, b in zip(words, words[1:], strict=False))
    with pytest.raises(UserError, match=audio.name):
        align(audio, "completely different words which nobody says in this recording at all " * 9, 25 * 60)
    with pytest.raises(UserError, match="expected pocketsphinx or ctc"):
        audio_aligner("other", book)


@pytest.mark.skipif(not (shutil.which("flite") or shutil.which("espeak-ng")), reason="needs a synthesiser")
def test_prepares_a_benchmark_end_to_end(tmp_path: Path) -> None:
    """Real tokenizer, real synthesiser, real features, a codebook of random centres."""
    pytest.importorskip("mistral_common")
    pytest.importorskip("soundfile")
    random_codebook(tmp_path / "codebook.safetensors")
    header = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
    header += "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
    (tmp_path / "cloze.csv").write_text(header + "a,One.,Two.,Three.,Four.,Five.,Fish swim.,1\nb,One.,Two.,,,A.,B.,1\n")
    output = lst(
        "eval", "prepare", "storycloze", tmp_path / "cloze.csv", tmp_path / "task", "--tokenizer", "mistral-v1",
        "--codebook", tmp_path / "codebook.safetensors",
    )  # fmt: skip
    assert "1 items for S->S, T->T, S->T, T->S, 1 refused" in output
    item = json.loads((tmp_path / "task" / "items.jsonl").read_text())
    assert 20 < len(item["prompt"]["units"]) < 200
    assert item["candidates"][1]["characters"] == len("Fish swim.")


def test_warm_start_writes_an_export_to_train_from(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaConfig(
        vocab_size=60, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
        rope_theta=500000.0, rms_norm_eps=1e-5,
    )  # fmt: skip
    transformers.LlamaForCausalLM(theirs).save_pretrained(tmp_path / "llama")
    config = toy_config(model__text_path="direct", patching__size=4)
    (tmp_path / "c.yaml").write_text(dump_yaml(replace(config, patching=PatchingConfig())))
    output = lst("warm-start", tmp_path / "c.yaml", tmp_path / "llama", tmp_path / "out")
    assert "0 not used" in output
    assert "fresh: encoder.pool_proj.weight" in output
    assert load_export(tmp_path / "out").metadata["warm_start"] == str(tmp_path / "llama")
