"""What is bad in a corpus costs itself alone, by file and line; official splits are held out; ids do not collide."""

import gzip
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lst_prep import corpora, manifest
from lst_prep.corpora import Corpus, Skipped
from lst_prep.corpora.writing import write_manifest
from lst_prep.manifest import Entry
from megatron_lst.errors import UserError


def put(path: Path, content: str | bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def look(kind: str, root: Path, **options: Any) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Entries, and (where without its folder, why) of what was left out."""
    lines: list[tuple[str, str]] = []
    skipped = Skipped(lambda line: lines.append((line["where"].removeprefix(f"{root}/"), line["why"])))
    return list(corpora.read(kind, Corpus(root, skipped=skipped, **options))), lines


def cut(name: str, **more: Any) -> str:
    value = {
        "id": name, "start": 1.0, "duration": 2.0, "channel": 1, "supervisions": [{"text": f"Words of {name}."}],
        "recording": {"id": "r", "sources": [{"source": "a.flac", "channels": [0]}]}, **more,
    }  # fmt: skip
    return json.dumps(value) + "\n"


def test_half_a_download_keeps_what_arrived(tmp_path: Path) -> None:
    whole = "".join(cut(f"c{i}", noise=os.urandom(40).hex()) for i in range(2000))
    packed = gzip.compress(whole.encode())
    put(tmp_path / "a_whole.jsonl.gz", packed)
    put(tmp_path / "b_half.jsonl.gz", packed[: len(packed) // 2])
    put(tmp_path / "c_error.jsonl.gz", "<html>503</html>")
    put(tmp_path / "d_last.jsonl", cut("last"))
    found, lines = look("libriheavy", tmp_path)
    half = len(found) - 2001
    assert 800 < half < 1200
    assert found[-1].id == "last"
    assert lines == [
        (f"b_half.jsonl.gz:{half + 1}", "the file breaks off"),
        ("c_error.jsonl.gz:1", "the file breaks off"),
    ]


def test_lines_of_libriheavy(tmp_path: Path) -> None:
    bad = [cut("no-label", supervisions=[]), "\n", "[1]\n", "{half\n", cut("no-words", supervisions=[{"text": None}])]
    put(tmp_path / "libriheavy_cuts_small.jsonl", cut("a") + "".join(bad) + cut("b"))
    put(tmp_path / "libriheavy_recordings_small.jsonl", json.dumps({"id": "r", "sources": []}) + "\n")
    put(tmp_path / "libriheavy_cuts_dev.jsonl", cut("held"))
    found, lines = look("libriheavy", tmp_path)
    assert [(e.id, e.split, e.channel) for e in found] == [
        ("held", "heldout", None), ("a", "train", None), ("b", "train", None),
    ]  # fmt: skip
    assert [where for where, _ in lines] == [
        *(f"libriheavy_cuts_small.jsonl:{n}" for n in (2, 3, 4, 5, 6)), "libriheavy_recordings_small.jsonl",
    ]  # fmt: skip
    stereo = {"id": "r", "sources": [{"source": "a.flac", "channels": [0, 1]}]}
    put(tmp_path / "stereo" / "cuts.jsonl", cut("s", recording=stereo))
    assert look("libriheavy", tmp_path / "stereo")[0][0].channel == 1


def test_lines_of_librispeech(tmp_path: Path) -> None:
    lines = (
        "\ufeff1-1-0000 FIRST\r\n\r\n1-1-0001\r\nnonsense here\r\n".encode() + b"1-1-0002 CAF\xc9\n1-1-0003 LAST WORD\n"
    )
    put(tmp_path / "train-other-500" / "1" / "1" / "1-1.trans.txt", lines)
    found, bad = look("librispeech", tmp_path)
    assert [(e.id, e.text) for e in found] == [("1-1-0000", "first"), ("1-1-0003", "last word")]
    assert [(where.rpartition(":")[2], why) for where, why in bad] == [
        ("2", "a blank line"),
        ("3", "not SPEAKER-CHAPTER-NUMBER TEXT"),
        ("4", "not SPEAKER-CHAPTER-NUMBER TEXT"),
        ("5", "not UTF-8"),
    ]


def test_lines_of_mls(tmp_path: Path) -> None:
    put(
        tmp_path / "train" / "transcripts.txt",
        b"\xef\xbb\xbf1_2_0\tone\n\nno tab\n1-2-1\tdashes\n1_2_2\tcaf\xe9\n1_2_3\tfour\n",
    )
    put(tmp_path / "train" / "segments.txt", "1_2_0\thttp://x/a.mp3\t0\t5\n1_2_3\thttp://x/a.mp3\tfive\n")
    found, bad = look("mls", tmp_path)
    assert [(e.id, e.text, e.document) for e in found] == [("1_2_3", "four", ""), ("1_2_0", "one", "1_2_a+0")]
    assert [where.rpartition(":")[2] for where, _ in bad] == ["2", "3", "4", "5", "segments.txt, 1_2_3"]


def test_lines_of_yodas_and_peoples_speech(tmp_path: Path) -> None:
    name = "AbC-eFgH-{0:05d}-{0:08d}-00009000"
    text = [name.format(0) + " one\u2028two", "", "no times", name.format(1), name.format(2) + " three"]
    put(tmp_path / "y" / "en000" / "text" / "0.txt", "\n".join(text).encode() + b"\nX-0-1-2 caf\xe9\n")
    found, bad = look("yodas", tmp_path / "y")
    assert [(e.speaker, e.text) for e in found] == [("AbC-eFgH", "one\u2028two"), ("AbC-eFgH", "three")]
    assert sorted(where.rpartition(":")[2] for where, _ in bad) == ["2", "3", "4", "6"]
    data = {"name": ["a.flac", "b.flac"], "label": ["words", None], "duration_ms": [1000, 1000]}
    uneven = {**data, "label": ["one"]}
    good = json.dumps({"identifier": "d", "training_data": data})
    rows = [good, json.dumps({"identifier": "e", "training_data": uneven}), "{}", good.replace("a.flac", "c.flac")[:-9]]
    put(tmp_path / "p" / "flac_test_manifest.jsonl", "\n".join(rows))
    found, bad = look("peoples-speech", tmp_path / "p")
    assert [(e.id, e.split) for e in found] == [("a", "heldout")]
    assert [where for where, _ in bad] == [f"flac_test_manifest.jsonl:{n}" for n in (1, 2, 3, 4)]


def test_a_folder_with_all_sorts_of_things(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for name in ("a/1.wav", "a/2.WAV", "a/3.aiff", "a/4.m4a", "a/5.wav", "a/5.mp3", "notes.docx", "[b]/1.wav"):
        put(root / name)
    put(root / "a" / "1.txt", "\ufeffHello there.\r\n")
    put(root / "a" / "2.TXT", "upper")
    put(root / "a" / "3.txt", b"caf\xe9")
    put(root / "a" / "9.txt", "of nothing")
    put(tmp_path / "elsewhere" / "6.wav")
    (root / "to-a").symlink_to("a")
    (root / "to-root").symlink_to(root)
    (root / "z").symlink_to(tmp_path / "elsewhere")
    (root / "zz").symlink_to(tmp_path / "elsewhere")
    found, bad = look("folder", root)
    assert {e.id: e.text for e in found} == {
        "mine/a/1": "Hello there.", "mine/a/2": "upper", "mine/a/5.mp3": "", "mine/a/5.wav": "", "mine/[b]/1": "",
        "mine/z/6": "",
    }  # fmt: skip
    assert sorted(where for where, _ in bad) == ["a/3.txt", "a/4.m4a", "a/9.txt", "notes.docx"]


def test_ids_of_two_corpora_with_equal_file_names_do_not_collide(tmp_path: Path) -> None:
    written = []
    for language in ("french", "german"):
        for number in range(3):
            put(tmp_path / language / "wavs" / "p1" / f"{number:03d}.wav")
        written.append(tmp_path / f"{language}.jsonl")
        write_manifest("folder", tmp_path / language / "wavs", written[-1])
    found = list(manifest.read(written, lambda where, why: pytest.fail(f"{where}: {why}")))
    assert len({entry.id for entry in found}) == 6
    assert {entry.source for entry in found} == {"french/wavs", "german/wavs"}


@pytest.mark.parametrize(
    ("name", "use"),
    [("train-clean-100", "train"), ("test-clean", "heldout"), ("dev-other", "heldout"), ("train", "train")],
)
def test_official_splits_are_mapped(tmp_path: Path, name: str, use: str) -> None:
    put(tmp_path / "ls" / name / "1" / "1" / "1-1.trans.txt", "1-1-0000 WORDS\n")
    put(tmp_path / "mls" / name / "transcripts.txt", "1_2_000000\twords\n")
    for root in (tmp_path / "ls", tmp_path / "ls" / name):
        assert [e.split for e in look("librispeech", root)[0]] == [use]
    for root in (tmp_path / "mls", tmp_path / "mls" / name):
        assert [e.split for e in look("mls", root)[0]] == [use]


def test_an_unknown_split_is_refused_until_it_is_named(tmp_path: Path) -> None:
    put(tmp_path / "validated" / "1" / "1" / "1-1.trans.txt", "1-1-0000 WORDS\n")
    with pytest.raises(UserError, match="--split validated=train"):
        look("librispeech", tmp_path)
    assert look("librispeech", tmp_path, splits={"validated": "heldout"})[0][0].split == "heldout"
    assert not list(tmp_path.glob("*.jsonl"))


def test_what_was_left_out_is_written_beside_the_manifest(tmp_path: Path) -> None:
    put(tmp_path / "c" / "train" / "transcripts.txt", "1_2_0\tone\nno tab\n")
    said = write_manifest("mls", tmp_path / "c", tmp_path / "m.jsonl")
    (line,) = (tmp_path / "m.jsonl.skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["where"].endswith("transcripts.txt:2")
    assert "1 pieces; 1 lines or files were left out" in said
    put(tmp_path / "c" / "train" / "transcripts.txt", "no tab\n")
    with pytest.raises(UserError, match="no piece of it can be used"):
        write_manifest("mls", tmp_path / "c", tmp_path / "none.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "m.jsonl", "m.jsonl.skipped.jsonl"]


def tone(hertz: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, 0.3 * np.sin(2 * np.pi * hertz * np.arange(16000) / 16000), 16000, format="WAV")
    return out.getvalue()


def save_set(folder: Path, rows: list[dict[str, Any]]) -> None:
    datasets = pytest.importorskip("datasets")
    audio = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"audio": audio, "text": datasets.Value("string"), "id": datasets.Value("int64")})
    made = datasets.Dataset.from_list(rows, features=features)
    made.cast_column("audio", datasets.Audio(decode=False)).save_to_disk(folder)


def row(hertz: int, text: str | None = "words", name: int = 0) -> dict[str, Any]:
    return {"audio": {"bytes": tone(hertz), "path": f"{hertz}.wav"}, "text": text, "id": name}


def test_a_set_that_is_saved_again_never_meets_old_audio(tmp_path: Path) -> None:
    for tones in ((200, 300, 400), (300, 400), (400, 300)):
        save_set(tmp_path / "set", [row(hertz, f"{hertz} hertz") for hertz in tones])
        before = sorted(path for path in (tmp_path / "set").rglob("*"))
        write_manifest("huggingface", tmp_path / "set", tmp_path / "m.jsonl")
        assert sorted(path for path in (tmp_path / "set").rglob("*")) == before  # nothing is written into the set
        for entry in manifest.read([tmp_path / "m.jsonl"], lambda where, why: pytest.fail(str(why))):
            assert Path(entry.audio).read_bytes() == tone(int(entry.text.split()[0]))


def test_rows_without_text_or_audio_and_ids_that_repeat(tmp_path: Path) -> None:
    rows = [row(200 + i, f"sentence {i // 2}", i // 2) for i in range(4)]
    save_set(tmp_path / "set", [*rows, row(300, None), {"audio": None, "text": "no sound", "id": 9}])
    said = write_manifest("huggingface", tmp_path / "set", tmp_path / "m.jsonl", "fleurs")
    found = list(manifest.read([tmp_path / "m.jsonl"], lambda where, why: pytest.fail(str(why))))
    assert [(e.id, e.text) for e in found] == [(f"fleurs/{i:08d}", f"sentence {i // 2}") for i in range(4)]
    assert "row 4" in said
    assert "row 5" in said


def test_splits_of_a_set(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    save_set(tmp_path / "one", [row(200)])
    part = datasets.load_from_disk(tmp_path / "one").remove_columns("id")
    datasets.DatasetDict({"train": part, "validation": part, "test.other": part}).save_to_disk(tmp_path / "set")
    found = list(corpora.read("huggingface", Corpus(tmp_path / "set", extracted=tmp_path / "sound")))
    assert [(e.id, e.split) for e in found] == [
        (f"{found[0].source}/{name}/00000000", use)
        for name, use in (("train", "train"), ("validation", "heldout"), ("test.other", "heldout"))
    ]
    datasets.DatasetDict({"validated": part}).save_to_disk(tmp_path / "other")
    with pytest.raises(UserError, match="--split validated=train"):
        list(corpora.read("huggingface", Corpus(tmp_path / "other", extracted=tmp_path / "sound")))
