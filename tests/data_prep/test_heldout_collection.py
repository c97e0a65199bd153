"""What is held out is collected whole or not at all; splits in records; what a preparation came to."""

import gzip
import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lst_prep.config import JobConfig, PrepConfig, TextSource
from lst_prep.pipeline import run
from lst_prep.summary import lost_lines
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import UserError

SECRETS = [f"The secret number {i} is that gulls count ships by {i}." for i in range(300)]
OTHERS = [f"Nothing here is known to anybody, not even in case {i}." for i in range(20)]


def jsonl(texts: list[str], **more: Any) -> bytes:
    return "".join(json.dumps({"text": text, **more}, ensure_ascii=False) + "\n" for text in texts).encode()


def config(folder: Path, *sources: TextSource, **options: Any) -> PrepConfig:
    return PrepConfig(text=sources, out=str(folder / "out"), jobs=JobConfig(workers=1), **options)


def prepare(folder: Path, name: str, content: bytes, split: str = "heldout") -> dict[str, Any]:
    """A training source of all texts, and the held-out one in a file of that content."""
    (folder / "web.jsonl").write_bytes(jsonl([*SECRETS, *OTHERS]))
    (folder / name).write_bytes(content)
    test = TextSource("test", str(folder / name), split=split)
    return run(config(folder, TextSource("web", str(folder / "web.jsonl")), test), quiet=True)


def trained(folder: Path) -> list[str]:
    return [document.text for document in ShardSet.open(folder / "out" / "text")]


def long_window(content: bytes) -> bytes:
    """As `zstd --long=31` writes: a window that readers refuse unless they are told to take it."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(content) + compressor.flush()


READABLE = {
    "h.jsonl": bytes,
    "h.jsonl.gz": gzip.compress,
    "h.jsonl.zst": long_window,
    "bom.jsonl": lambda content: b"\xef\xbb\xbf" + content,
    "utf16.jsonl": lambda content: content.decode().encode("utf-16"),
    "H.NDJSON": bytes,
    "h.json": lambda content: json.dumps([json.loads(line) for line in content.splitlines()], indent=1).encode(),
}


@pytest.mark.parametrize("name", READABLE)
def test_what_is_held_out_is_not_trained_on_whatever_it_is_packed_in(tmp_path: Path, name: str) -> None:
    summary = prepare(tmp_path, name, READABLE[name](jsonl(SECRETS)))
    assert trained(tmp_path) == OTHERS
    assert (summary["heldout_sentences"], summary["heldout_sentences_removed_from_text"]) == (300, 300)
    assert 0 < summary["heldout_share_cut"]["web"] < 1


WHOLE = jsonl(SECRETS)
DAMAGED = {
    "half.jsonl.gz": gzip.compress(WHOLE)[:-400],
    "half.jsonl.xz": lzma.compress(WHOLE)[:-100],
    "half.jsonl.zst": zstandard.ZstdCompressor().compress(WHOLE)[:-100],
    "nothing.jsonl.gz": b"no gzip at all",
    "cut.jsonl": WHOLE[:-20],
    "latin.jsonl": WHOLE + '{"text": "caf\xe9"}\n'.encode("latin-1"),
    "key.jsonl": jsonl(SECRETS).replace(b'"text"', b'"content"'),
    "null.jsonl": WHOLE + b'{"text": null}\n',
    "latin.txt": "Le caf\xe9 pr\xe8s de la for\xeat.".encode("latin-1"),
    "half.parquet": b"PAR1 and no more",
    "empty.jsonl": b"",
    "blank.jsonl": b'{"text": "  "}\n',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_held_out_text_that_is_not_whole_stops_everything(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"'test'.*held.out.*{name}"):
        prepare(tmp_path, name, DAMAGED[name])
    assert not (tmp_path / "out" / "text").exists()
    summary = prepare(tmp_path, name, DAMAGED[name], split="train")  # the control: the same file as training text
    assert summary["heldout_sentences"] == 0


def test_after_it_is_mended_the_same_command_goes_on(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        prepare(tmp_path, "h.jsonl", WHOLE[:-20])
    prepare(tmp_path, "h.jsonl", WHOLE)
    assert trained(tmp_path) == OTHERS


@pytest.mark.parametrize("fault", [b'{"text": "broken\n', b'{"text": 7, "split": "test"}\n'])
def test_a_training_file_with_held_out_records_must_be_whole_too(tmp_path: Path, fault: bytes) -> None:
    mixed = jsonl(OTHERS) + jsonl(SECRETS[:3], split="test")
    if b"split" in fault:  # a line that names no split is not looked at: it cannot be held out
        with pytest.raises(UserError, match="'test' holds held-out text that cannot be read whole"):
            prepare(tmp_path, "mixed.jsonl", mixed + fault, split="train")
    else:
        assert prepare(tmp_path, "mixed.jsonl", mixed + fault, split="train")["rejected"]["bad_text_line"] == 1


def test_records_of_test_splits_are_held_out(tmp_path: Path) -> None:
    for number, split in enumerate(["test", "validation", "dev-clean", "heldout", "train", "train-clean-100", None]):
        with (tmp_path / "w.jsonl").open("ab") as out:
            out.write(jsonl([SECRETS[number]], split=split))
    summary = run(config(tmp_path, TextSource("w", str(tmp_path / "w.jsonl"))), quiet=True)
    assert trained(tmp_path) == SECRETS[4:7]
    assert [d.text for d in ShardSet.open(tmp_path / "out" / "heldout-text")] == SECRETS[:4]
    assert summary["heldout_sentences"] == 4


def test_held_out_lines_of_a_manifest_that_cannot_be_used_are_held_out(tmp_path: Path) -> None:
    """An unknown key, an id that was there: whatever is wrong with the line, its text is not trained on."""
    line = {"id": "a", "audio": "a.wav", "text": SECRETS[0], "split": "test"}
    lines = [{**line, "offset": 3}, {**line, "text": SECRETS[1], "audio": "../a.wav"}]
    control = {**line, "text": SECRETS[2], "split": "train", "offset": 3}
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in [*lines, control]))
    (tmp_path / "w.jsonl").write_bytes(jsonl(SECRETS[:5]))
    made = config(tmp_path, TextSource("w", str(tmp_path / "w.jsonl")), manifests=(str(tmp_path / "m.jsonl"),))
    assert run(made, quiet=True)["rejected"] == {"unknown_key": 2, "outside_corpus": 1, "held_out": 2}
    assert trained(tmp_path) == SECRETS[2:5]
    (tmp_path / "m.jsonl").write_text('{"id": "a", "audio": "a.wav", "split": "test", "text": "The secr\n')
    made.out = str(tmp_path / "more")
    with pytest.raises(UserError, match=r"m\.jsonl:1: a line that may be held out cannot be read"):
        run(made, quiet=True)


def test_files_with_names_of_held_out_splits_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl", "contest.jsonl"):
        (tmp_path / name).write_bytes(jsonl(OTHERS[:1]))
    run(config(tmp_path, TextSource("w", str(tmp_path / "*.jsonl"))), quiet=True)
    assert re.search(r"'w' trains on 1 files .*/validation-00000-of-00001\.jsonl; ", capsys.readouterr().err)


@pytest.mark.parametrize("split", ["extra", 0, True, ["test"]])
def test_a_split_that_nobody_knows_is_refused_until_its_meaning_is_given(tmp_path: Path, split: Any) -> None:
    path = tmp_path / "w.jsonl"
    path.write_bytes(jsonl(OTHERS[:2]) + jsonl(SECRETS[:1], split=split))
    with pytest.raises(UserError, match=rf"{path}:3: .*unknown split .*`splits` whether it is trained on"):
        run(config(tmp_path, TextSource("w", str(path))), quiet=True)
    for meaning, texts in (("heldout", OTHERS[:2]), ("train", [*OTHERS[:2], SECRETS[0]])):
        run(config(tmp_path / meaning, TextSource("w", str(path), splits={str(split): meaning})), quiet=True)
        assert trained(tmp_path / meaning) == texts


def test_six_hundred_small_files_are_one_item_and_one_shard(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(600):
        (tmp_path / "texts" / f"{number:03d}.txt").write_text(f"File number {number} tells of {3 * number} gulls.")
    made = config(tmp_path, TextSource("small", str(tmp_path / "texts")))
    assert run(made, quiet=True)["sets"]["text"]["documents"] == 600
    shards = ShardSet.open(tmp_path / "out" / "text")
    assert shards.shards == 1
    assert len({document.id for document in shards}) == 600
    assert sum(1 for path in (tmp_path / "out").rglob("*") if path.is_file()) < 30
    made.jobs.item_bytes = 2000  # the control: items go by size
    made.out = str(tmp_path / "more")
    run(made, quiet=True)
    assert 5 < ShardSet.open(tmp_path / "more" / "text").shards < 20


def test_a_preparation_that_prepared_nothing_fails_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "w.jsonl").write_bytes(jsonl(OTHERS))
    with pytest.raises(UserError) as error:
        run(config(tmp_path, TextSource("web", str(tmp_path / "w.jsonl"), text_key="content")), quiet=True)
    assert "not one document" in str(error.value)
    assert "20 as bad_text_line (100.0% of web), such as w.jsonl:1: no string 'content'" in str(error.value)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["rejected"] == {"bad_text_line": 20}


def test_the_summary_names_losses_licences_and_warns(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl(OTHERS) + b"broken\n" * 5)
    (tmp_path / "b.jsonl").write_bytes(jsonl(SECRETS) + b"broken\n" * 5)
    sources = [
        TextSource(name, str(tmp_path / f"{name}.jsonl"), license=text) for name, text in (("a", ""), ("b", "CC0"))
    ]
    made = config(tmp_path, *sources, attributions={"b": "by the gulls"})
    summary = run(made, quiet=True)
    assert summary["lost"]["a"] == {"rejected": 5, "used": 20, "share": 0.2}
    lines = lost_lines(summary)
    assert lines[0].startswith("rejected        5 as bad_text_line (20.0% of a), such as a.jsonl:21: not JSON")
    assert [line for line in lines if "WARNING" in line] == ["WARNING: a lost 20.0%, 5 of 25: 5 bad_text_line"]
    manifest = ShardSet.open(tmp_path / "out" / "text").manifest
    assert manifest["licenses"] == ["CC0", "not stated (a)"]
    assert manifest["attributions"] == ["a: licence not stated", "b: CC0; by the gulls"]
