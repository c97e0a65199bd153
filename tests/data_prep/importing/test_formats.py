"""Each format, written by its own writer, gives the same documents, in shards that verify."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lst_prep.importing.config import ImportConfig
from lst_prep.importing.pipeline import run_import
from lst_prep.jobs import Jobs
from lst_prep.verify import verify_sets
from megatron_lst.config.load import build
from megatron_lst.documents.codec import Codec
from megatron_lst.documents.shards import ShardSet
from tests.data_prep.importing.tokens import BOOKS, CODEC, RATE, WRITERS, configuration, records


def run(values: dict[str, Any], part: str | None = None) -> dict[str, Any] | None:
    return run_import(build(ImportConfig, values), quiet=True, part=part)


def documents(folder: Path) -> dict[str, Any]:
    return {document.id.rpartition("/")[2].removesuffix(".wav"): document for document in ShardSet.open(folder)}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_what_was_put_in(tmp_path: Path, kind: str) -> None:
    rows = records()
    source = WRITERS[kind](tmp_path / "in", rows)
    out = tmp_path / "out"
    summary = run(configuration(out, source))
    assert summary is not None and summary["records"] == len(rows) and summary["rejected"] == {}
    assert verify_sets([out], lambda line: None, Jobs(workers=1)) == []
    codec = Codec("toy", BOOKS, RATE)
    said, unsaid = documents(out / "talks"), documents(out / "talks-untranscribed")
    assert len(said) == 20 and len(unsaid) == 4
    for row in rows:
        document = (said if row["text"] else unsaid)[row["id"]]
        assert np.array_equal(codec.codes(document.speech_ids), row["codes"])
        assert document.text == (row["text"] or "") and document.source == "talks"
        assert document.segment_frames.tolist() == ([[0, len(row["codes"])]] if row["text"] else [])
        assert document.segment_tokens.tolist() == ([[0, len(document.token_ids)]] if row["text"] else [])
    shards = ShardSet.open(out / "talks")
    assert shards.codec == codec and shards.manifest["codec"]["name"] == CODEC["name"]
    assert shards.frames.sum() == sum(len(row["codes"]) for row in rows if row["text"])


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "webdataset"])
def test_slices_and_reruns_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    source = WRITERS[kind](tmp_path / "in", records())
    run(configuration(tmp_path / "whole", source))
    sliced = configuration(tmp_path / "sliced", source)
    for _ in range(2):  # the first pass checks
        for part in ("0/3", "2/3", "1/3"):
            assert run(sliced, part) is None
    assert not (tmp_path / "sliced/train.yaml").exists()
    run(sliced)
    whole = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole/talks").rglob("*") if p.is_file())
    assert len(whole) > 4
    for name in whole:
        if name.name != "manifest.json":  # names the plan
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "sliced" / name).read_bytes(), name
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "whole").rglob("*.mds.zstd")}
    run(configuration(tmp_path / "whole", source))
    assert {p: p.stat().st_mtime_ns for p in before} == before  # nothing is done twice


def test_words_with_times_make_documents_for_aligned_patches(tmp_path: Path) -> None:
    from tests.data_prep.importing.tokens import write_jsonl

    rows = [r for r in records() if r["text"]]
    for row in rows:
        words = row["text"].split()
        edges = np.linspace(0, row["seconds"], len(words) + 1)
        row["words"] = [
            {"word": w, "start": float(a), "end": float(b)} for w, a, b in zip(words, edges, edges[1:], strict=False)
        ]
        row["text"] = row["text"].capitalize() + "."
    source = write_jsonl(tmp_path / "in", rows)
    columns = {"id": "id", "tokens": "codes", "text": "text", "words": "words"}
    run(configuration(tmp_path / "out", {**source, "columns": columns}))
    for document in ShardSet.open(tmp_path / "out/talks"):
        assert not len(document.segment_frames)
        said = [document.text[a:b] for a, b in document.word_chars]
        assert said == document.text.split() and document.text.endswith(".")
        assert len(document.word_frames) == len(document.word_tokens) <= len(said)


def test_records_of_a_recording_are_the_segments_of_one_document(tmp_path: Path) -> None:
    from tests.data_prep.importing.tokens import write_jsonl

    rows = [r for r in records(12) if r["text"]]
    at = 0.0
    for i, row in enumerate(rows):
        row["recording"], row["start"] = f"tape{i // 5}", at
        at = 0.0 if i % 5 == 4 else at + row["seconds"]
    rows[7]["start"] = 0.0  # goes back: not joined to what stands before it
    source = write_jsonl(tmp_path / "in", rows)
    columns = {"id": "id", "tokens": "codes", "text": "text", "recording": "recording", "start": "start"}
    values = configuration(tmp_path / "out", {**source, "columns": columns}) | {"jobs": {"workers": 1}}
    run(values)
    shards = ShardSet.open(tmp_path / "out/talks")
    assert [len(d.segment_frames) for d in shards] == [5, 2, 3]
    first = shards.get(0)
    assert first.text == " ".join(r["text"] for r in rows[:5])
    ends = np.cumsum([len(r["codes"]) for r in rows[:5]])
    assert first.segment_frames[:, 1].tolist() == ends.tolist()


def test_segments_with_times_inside_a_record(tmp_path: Path) -> None:
    from tests.data_prep.importing.tokens import write_parquet

    rows = [{**r, "segments": None} for r in records(6) if r["text"]]
    for row in rows:
        half = row["seconds"] / 2
        row["segments"] = [
            {"text": "in the beginning", "start": 0.0, "end": half},
            {"text": "and the earth", "start": half, "end": row["seconds"]},
        ]
    source = write_parquet(tmp_path / "in", rows)
    columns = {"id": "id", "tokens": "codes", "segments": "segments", "seconds": "seconds"}
    run(configuration(tmp_path / "out", {**source, "columns": columns}))
    for document in ShardSet.open(tmp_path / "out/talks"):
        assert document.text == "in the beginning and the earth"
        assert len(document.segment_frames) == 2 and document.segment_frames[0, 1] == document.segment_frames[1, 0]


def test_held_out_splits_and_their_sentences_are_kept_apart(tmp_path: Path) -> None:
    from tests.data_prep.importing.tokens import write_parquet

    rows = [{**r, "split": "train"} for r in records(20) if r["text"]]
    sentence = "Without form and void was the whole of the earth in the beginning of all things."
    rows[2]["split"], rows[2]["text"] = "test-clean", sentence
    rows[5]["text"] = sentence.lower()
    rows[6]["split"] = "blind"
    source = write_parquet(tmp_path / "in", rows)
    columns = {"id": "id", "tokens": "codes", "text": "text", "split": "split"}
    summary = run(configuration(tmp_path / "out", {**source, "columns": columns}))
    assert summary is not None and summary["rejected"] == {"unknown_split": 1, "held_out": 1}
    assert [d.id for d in ShardSet.open(tmp_path / "out/heldout-talks")] == [rows[2]["id"]]
    assert rows[5]["id"] not in documents(tmp_path / "out/talks")
    text = (tmp_path / "out/train.yaml").read_text()
    assert "heldout-talks" in text and "validation" in text
    rows[2]["split"] = "train"  # trains, unless the other import's list says what is held out
    source = write_parquet(tmp_path / "again", rows)
    lists = {"heldout": [str(tmp_path / "out/heldout.json")]}
    summary = run(configuration(tmp_path / "other", {**source, "columns": columns}, **lists))
    assert summary is not None and summary["rejected"] == {"unknown_split": 1, "held_out": 2}


def test_train_yaml_is_a_base_of_a_training_configuration(tmp_path: Path) -> None:
    from megatron_lst.config import load_config
    from megatron_lst.data.mixture import open_mixture
    from tests.data_prep.importing.tokens import write_parquet

    source = write_parquet(tmp_path / "in", records())
    run(configuration(tmp_path / "out", source))
    (tmp_path / "run.yaml").write_text("base: [out/train.yaml]\npatching: {strategy: static, size: 3}\n")
    config = load_config(tmp_path / "run.yaml")
    assert config.vocabulary.codebooks == BOOKS and config.vocabulary.speech_size == sum(BOOKS)
    assert [s.name for s in config.data.sources] == ["talks"]  # speech alone is off by default
    assert len(open_mixture(config, config.data.sources, 1).documents[0]) == 20
    import dataclasses

    for change in ({"frame_rate": 25.0}, {"codebooks": (40, 20, 30)}, {"codec": "another"}):
        other = dataclasses.replace(config, vocabulary=dataclasses.replace(config.vocabulary, **change))
        with pytest.raises(Exception, match=f"source 'talks'.*vocabulary.{next(iter(change))}"):
            open_mixture(other, config.data.sources, 1)


def test_the_command_says_what_it_made_and_what_it_left_out(tmp_path: Path) -> None:
    import json

    import yaml
    from typer.testing import CliRunner

    from megatron_lst.cli.prep import prep_app
    from tests.data_prep.importing.tokens import write_parquet

    rows = records(60)
    for row in rows[::2]:
        row["seconds"] *= 3  # more than the examples that a receipt keeps
    source = write_parquet(tmp_path / "in", rows)
    values = configuration(tmp_path / "out", {**source, "license": "CC0"}, checks={"max_rejected": 0.6})
    values |= {"jobs": {"workers": 1}, "attributions": {"talks": "the authors"}}
    path = tmp_path / "import.yaml"
    path.write_text(yaml.safe_dump(values))
    result = CliRunner().invoke(prep_app, ["import", str(path), "--quiet"])
    assert result.exit_code == 0, result.output
    assert "talks/talks" in result.output and "codec: toy, 12.5 Hz, 1 x 30 + 1 x 20 + 1 x 40" in result.output
    assert "30 as rate_mismatch (50.0% of talks)" in result.output
    assert "WARNING: talks lost 50.0%, 30 of 60" in result.output
    manifest = json.loads((tmp_path / "out/talks/manifest.json").read_text())
    assert manifest["licenses"] == ["CC0"] and manifest["attributions"] == ["talks: CC0; the authors"]
    assert "CC0" in (tmp_path / "out/report.md").read_text()
    page = (tmp_path / "out/report.html").read_text()
    assert "<h1>Import of speech tokens</h1>" in page and "<h2>talks, talks</h2>" in page and "Records read: 60" in page
    refused = CliRunner().invoke(prep_app, ["import", str(path), "codec.rate=25", f"out={tmp_path / 'no'}", "--quiet"])
    assert refused.exit_code != 0 and "60 of 60 records are wrong" in str(refused.exception)


def test_an_export_asks_for_no_codebook_of_imported_tokens(tmp_path: Path) -> None:
    """They may have the name of an extractor of ours; only what was made here has a codebook file to go along."""
    import json

    from megatron_lst.cli.self_contained import find_companions
    from megatron_lst.config import load_config
    from megatron_lst.errors import UserError
    from tests.data_prep.importing.tokens import write_parquet

    values = configuration(tmp_path / "out", write_parquet(tmp_path / "in", records()))
    run({**values, "codec": {**CODEC, "name": "hubert"}})
    (tmp_path / "run.yaml").write_text("base: [out/train.yaml]\npatching: {strategy: static, size: 3}\n")
    config = load_config(tmp_path / "run.yaml")
    found = find_companions(tmp_path, config, None, None, None, False)
    assert found.codebook is None and found.metadata["codec"]["name"] == "hubert"
    manifest = tmp_path / "out/talks/manifest.json"
    content = json.loads(manifest.read_text())
    content["codec"]["encoder"] = ""  # the control: as if it were made here
    manifest.write_text(json.dumps(content))
    with pytest.raises(UserError, match="codebook .* is not at hand"):
        find_companions(tmp_path, config, None, None, None, False)
