"""What people look at: fingerprint, inspect, simulate and patches."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from megatron_lst.cli.data import data_app
from megatron_lst.config.load import dump_yaml
from megatron_lst.data.patches import measure_patches
from megatron_lst.data.picture import CHARACTER, describe_units, label_heights, note_tokens
from megatron_lst.data.simulate import simulate
from megatron_lst.data.stream import RowStream, Stream
from megatron_lst.data.validation import validation_rows
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.patching.row import batch_hash
from megatron_lst.patching.serialisation import save_rows
from tests.data.toy import SPEECH_DOCUMENTS, TEXT_DOCUMENTS, make_config, make_mixture, on_disk


@pytest.fixture
def config_file(shard_sets: dict[str, Path], tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(on_disk(make_config(), shard_sets, cache=str(tmp_path / "cache"))))
    return path


def lst(*arguments: object) -> str:
    result = CliRunner().invoke(data_app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.multiprocess
def test_fingerprint_is_the_batch_hash_for_any_ranks_and_workers(config_file: Path) -> None:
    lines = lst("fingerprint", config_file, "--steps", 4).split()
    from megatron_lst.config import load_config

    stream = RowStream(load_config(config_file), 0, 1)
    assert lines == [batch_hash([row.hash for row in next(stream).rows]) for _ in range(4)]
    assert lst("fingerprint", config_file, "--steps", 4, "--ranks", 2, "data.workers=1").split() == lines


def test_inspect_draws_and_tabulates_a_row(config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "pictures" / "row.png"
    shown = lst("inspect", config_file, "--row", 11, "--out", out)
    assert "row 11" in shown
    assert out.stat().st_size > 10_000
    with pytest.raises(UserError, match=r"--row 999999999: the run has [\d,]+ rows"):
        lst("inspect", config_file, "--row", 999999999)


def test_inspect_shows_rows_that_a_run_saved(config_file: Path, tmp_path: Path) -> None:
    from megatron_lst.config import load_config

    rows = next(RowStream(load_config(config_file), 0, 1)).rows
    saved = tmp_path / "logs" / "bad-step-00000001" / "rows-00000.npz"
    save_rows(saved, rows)
    picture = tmp_path / "row.png"
    with pytest.raises(UserError):
        lst("inspect", config_file, "--saved", saved, "--row", 999)
    shown = lst("inspect", config_file, "--saved", saved, "--row", rows[1].index, "--out", picture, "--units", 12)
    assert f"rows {', '.join(str(row.index) for row in rows)}" in shown
    assert f"row {rows[1].index}, hash {rows[1].hash:016x}" in shown
    assert picture.stat().st_size > 10_000
    with pytest.raises(DamagedDataError, match="no rows can be read"):
        lst("inspect", config_file, "--saved", config_file)


def test_ids_alone_say_what_a_saved_token_is() -> None:
    """As the visits say it, but that silence is speech."""
    config = make_config(patching__strategy="aligned")
    stream, seen = Stream(make_mixture(config), 2), set()
    for _ in range(8):
        row = stream.next_row()
        known = note_tokens(row, stream.origins, config.vocabulary).kind
        assert note_tokens(row, [], config.vocabulary).kind == ["speech" if k == "silence" else k for k in known]
        seen |= set(known)
    assert seen >= {"text", "speech", "silence", "marker"}


def test_notes_say_what_every_token_is() -> None:
    config = make_config(patching__strategy="aligned")
    stream = Stream(make_mixture(config), 2)
    vocabulary = config.vocabulary
    for _ in range(12):
        row = stream.next_row()
        notes = note_tokens(row, stream.origins, vocabulary)
        speech = vocabulary.is_speech(row.tokens)
        kinds = np.array(notes.kind)
        assert np.array_equal(speech, (kinds == "speech") | (kinds == "silence"))
        assert np.array_equal(kinds == "padding", row.tokens == vocabulary.pad)
        special = [vocabulary.bos, vocabulary.eos, vocabulary.text_marker, vocabulary.speech_marker]
        assert np.array_equal(kinds == "marker", np.isin(row.tokens, special))
        # An aligned patch is all word or all silence, and of one word.
        for u in np.flatnonzero(row.patch_length > 1):
            inside = row.unit == u
            assert len(set(kinds[inside])) == 1
            assert len(set(notes.word[inside])) == 1
        for entry in describe_units(row, stream.origins, vocabulary):
            closed_at, first, tokens = entry["closed_at"], entry["first"], entry["tokens"]
            assert closed_at is None or closed_at in (first + tokens - 1, first + tokens)


def test_simulate_agrees_with_what_happens(config_file: Path) -> None:
    config = make_config(training__steps=100)
    mixture = make_mixture(config)
    forecast = simulate(config, 2, 1, sample_rows=256, mixture=mixture)
    stream = RowStream(config, 0, 1, mixture=mixture)
    padding, tokens = 0, dict.fromkeys(("speech", "text"), 0)
    first_repeat: dict[str, int] = {}
    for step in range(100):
        for row in next(stream).rows:
            padding += int((row.tokens == config.vocabulary.pad).sum())
            for name, count in row.statistics.tokens_by_source.items():
                tokens[name] += count
        for name in tokens:
            if max(s.epochs[name] for s in stream._streams.values()) >= 1:
                first_repeat.setdefault(name, step)
    assert forecast.padding == pytest.approx(padding / (800 * 128), abs=0.01)
    for source in forecast.sources:
        assert source.share == pytest.approx(source.wanted, abs=0.05)
        assert source.tokens == pytest.approx(tokens[source.name], rel=0.1)
        epochs = np.mean([s.epochs[source.name] for s in stream._streams.values()])
        assert source.epochs == pytest.approx(epochs, rel=0.25)
        assert source.runs_out_first == pytest.approx(first_repeat[source.name], rel=0.5, abs=6)
    # Streams own whole shards but for those at the ends of their intervals.
    shards = sum(len(d.shard_bytes) for d in mixture.documents)
    assert sum(n.shards for n in forecast.nodes) <= shards + 4
    told = json.loads(lst("simulate", config_file, "--ranks", 2, "--ranks-per-node", 1, "--rows", 64, "--json"))
    assert [s["name"] for s in told["sources"]] == ["speech", "text"]
    assert "downloads" in lst("simulate", config_file, "--rows", 64)


def test_patches_are_measured_for_every_strategy_that_the_data_serves(config_file: Path, tmp_path: Path) -> None:
    measured = {m.name: m for m in measure_patches(SPEECH_DOCUMENTS, make_config().patching)}
    assert set(measured) == {
        "static 4",
        "aligned, word, silence separate",
        "aligned, word, silence merged",
        "aligned, bpe, silence separate",
        "aligned, bpe, silence merged",
    }
    words = sum(len(d.word_frames) for d in SPEECH_DOCUMENTS)
    separate, merged = measured["aligned, word, silence separate"], measured["aligned, word, silence merged"]
    assert len(separate.word) == len(merged.word) == words
    lengths = np.concatenate([d.word_frames[:, 1] - d.word_frames[:, 0] for d in SPEECH_DOCUMENTS])
    assert separate.summary()["mean of words"] == pytest.approx(lengths.mean())
    assert merged.summary()["mean"] == pytest.approx(sum(len(d.speech_ids) for d in SPEECH_DOCUMENTS) / words)
    with pytest.raises(UserError, match="none of the documents has speech"):
        measure_patches(TEXT_DOCUMENTS, make_config().patching)
    out = tmp_path / "patches.png"
    shown = lst("patches", config_file, "--documents", 20, "--out", out)
    assert re.search(r"static 4", shown)
    assert out.stat().st_size > 5_000


def test_held_out_rows_are_the_same_for_all_static_strategies_and_never_repeat() -> None:
    curriculum, static = make_config(), make_config(patching__strategy="static")
    source = curriculum.data.sources[0]

    def rows(config: object, count: int = 10_000) -> list:
        mixture = make_mixture(config, 1)  # type: ignore[arg-type]
        alone = type(mixture).of(config, [source], mixture.documents[:1], 1)  # type: ignore[arg-type]
        return validation_rows(config, source, count, alone)  # type: ignore[arg-type]

    found = rows(curriculum)
    assert [r.hash for r in found] == [r.hash for r in rows(static)]
    assert [r.hash for r in found[:3]] == [r.hash for r in rows(static, 3)]
    assert [r.hash for r in found] != [r.hash for r in rows(make_config(patching__strategy="aligned"))]
    begun = [name for r in found for name in r.document_ids if name]
    # A document that is cut stands in two rows, one after the other; none comes back later.
    assert len(set(begun)) >= 0.9 * len(SPEECH_DOCUMENTS)
    collapsed = [name for i, name in enumerate(begun) if i == 0 or begun[i - 1] != name]
    assert len(collapsed) == len(set(collapsed))


def test_labels_of_a_line_do_not_overlap() -> None:
    words = ["through", "the", "", "cities", "and", "villages,", "", "", "a", "I", "journeying"] * 4
    heights = label_heights(words)
    spans = [(h, c, c + CHARACTER * len(w)) for c, (h, w) in enumerate(zip(heights, words, strict=True)) if w]
    clashes = [(a, b) for a in spans for b in spans if a[0] == b[0] and a[1] < b[1] < a[2]]
    assert clashes == []
    on_one_line = [(a, b) for a in spans for b in spans if a[1] < b[1] < a[2]]
    assert on_one_line, "control: at one height they would"
