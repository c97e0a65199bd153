"""Readers: small copies of the layouts that the corpora have on disk."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from lst_prep import corpora, manifest
from lst_prep.corpora import Corpus
from lst_prep.manifest import Entry
from megatron_lst.errors import UserError

SPEECH = Path(__file__).parents[2] / "data_prep" / "corpus" / "audio" / "librivox-sense-0880.ogg"


def put(path: Path, text: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        shutil.copy(SPEECH, path)
    else:
        path.write_text(text)
    return path


def read(kind: str, root: Path) -> dict[str, Entry]:
    entries = list(corpora.read(kind, Corpus(root)))
    assert len({entry.id for entry in entries}) == len(entries)
    assert all(Path(entry.audio).exists() for entry in entries)
    return {entry.id: entry for entry in entries}


def test_librispeech(tmp_path: Path) -> None:
    folder = tmp_path / "train-clean-100" / "19" / "198"
    put(folder / "19-198.trans.txt", "19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n")
    put(folder / "19-198-0000.flac")
    put(folder / "19-198-0001.flac")
    found = read("librispeech", tmp_path)
    assert found["19-198-0001"].text == "this little work"
    assert {e.document for e in found.values()} == {"19-198"}
    assert found["19-198-0000"].speaker == "19"


def test_mls_joins_only_what_follows(tmp_path: Path) -> None:
    names = ["1_2_000000", "1_2_000001", "1_2_000002"]
    put(tmp_path / "train" / "transcripts.txt", "".join(f"{n}\ttext of {n}\n" for n in names))
    times = {"1_2_000000": (20.0, 30.0), "1_2_000001": (10.0, 20.0), "1_2_000002": (55.0, 60.0)}
    lines = "".join(f"{n}\thttp://x/book_01.mp3\t{a}\t{b}\n" for n, (a, b) in times.items())
    put(tmp_path / "train" / "segments.txt", lines)
    for name in names:
        put(tmp_path / "train" / "audio" / "1" / "2" / f"{name}.opus")
    entries = list(corpora.read("mls", Corpus(tmp_path)))
    assert [e.id for e in entries] == ["1_2_000001", "1_2_000000", "1_2_000002"]
    assert entries[0].document == entries[1].document != entries[2].document


def test_mls_holds_one_book_at_a_time_in_whatever_order_the_lines_are(tmp_path: Path) -> None:
    names = [f"{book % 7}_{book}_{number:06d}" for number in range(100) for book in range(200)]
    put(tmp_path / "train" / "transcripts.txt", "".join(f"{n}\t{'text ' * 40}{n}\n" for n in names))
    spans = "".join(f"{n}\thttp://x/{n.split('_')[1]}.mp3\t{i}\t{i + 1}\n" for i, n in enumerate(reversed(names)))
    put(tmp_path / "train" / "segments.txt", spans)
    tracemalloc.start()
    ids = [entry.id for entry in corpora.read("mls", Corpus(tmp_path)) if entry.text.endswith(entry.id)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    order = sorted(names, key=lambda n: (n.rsplit("_", 1)[0], -int(n.rsplit("_", 1)[1])))  # later lines begin earlier
    assert ids == order
    assert peak < 200 * len(names)  # 70 of them are the ids here; all texts and times take more than a thousand


def test_libriheavy(tmp_path: Path) -> None:
    audio = put(tmp_path / "download" / "large" / "100" / "book" / "ch1.flac")

    def cut(name: str, start: float, duration: float) -> dict[str, object]:
        label = {"text": "", "custom": {"texts": [f"Text of {name}.", "TEXT"]}, "speaker": "100"}
        recording = {"id": "large/ch1", "sources": [{"source": "download/large/100/book/ch1.flac"}]}
        return {"id": name, "start": start, "duration": duration, "supervisions": [label], "recording": recording}

    cuts = [cut("a", 0, 1.5), cut("b", 1.6, 1.0), cut("c", 9.0, 1.0)]
    with gzip.open(tmp_path / "cuts.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(c) + "\n" for c in cuts))
    found = read("libriheavy", tmp_path)
    assert found["a"].text == "Text of a."
    assert (found["b"].start, found["b"].end) == (1.6, 2.6)
    assert found["a"].document == found["b"].document != found["c"].document
    assert found["a"].audio == str(audio)


def test_peoples_speech(tmp_path: Path) -> None:
    put(tmp_path / "doc" / "p_0.flac")
    put(tmp_path / "doc" / "p_1.flac")
    data = {"name": ["doc/p_0.flac", "doc/p_1.flac"], "label": ["one", "two"], "duration_ms": [2990, 2990]}
    put(tmp_path / "train.json", json.dumps({"audio_document_id": "doc", "training_data": data}) + "\n")
    found = read("peoples-speech", tmp_path)
    assert [e.text for e in found.values()] == ["one", "two"]
    assert found["doc/p_0"].seconds == 2.99
    assert found["doc/p_0"].document == "doc"


def test_yodas_joins_subtitles_that_follow(tmp_path: Path) -> None:
    names = ["Yab-c_d-00000-00000100-00000350", "Yab-c_d-00001-00000360-00000500", "Yab-c_d-00002-00000900-00001000"]
    put(tmp_path / "en000" / "text" / "00000000.txt", "".join(f"{n} Words of {n[-8:]}\n" for n in reversed(names)))
    for name in names:
        put(tmp_path / "en000" / "audio" / "00000000" / f"{name}.wav")
    found = read("yodas", tmp_path)
    assert list(found) == names
    assert found[names[1]].text == "Words of 00000500"
    assert found[names[1]].seconds == pytest.approx(1.4)
    assert {(e.speaker, e.source) for e in found.values()} == {("Yab-c_d", "yodas-en000")}
    assert found[names[0]].document == found[names[1]].document != found[names[2]].document


def test_a_file_name_of_another_encoding_is_written_with_an_escape(tmp_path: Path) -> None:
    root = tmp_path / "set of mine"
    put(root / "a.ogg")
    try:
        put(root / os.fsdecode(b"caf\xe9") / "b.ogg")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert manifest.write(tmp_path / "manifest.jsonl", corpora.read("folder", Corpus(root))) == 2
    found = list(manifest.read([tmp_path / "manifest.jsonl"], lambda where, why: pytest.fail(f"{where}: {why}")))
    assert [(e.id, e.speaker) for e in found] == [
        ("set of mine/a", ""),
        ("set of mine/caf\\udce9/b", "caf\\udce9"),
    ]
    assert all(Path(e.audio).read_bytes() == SPEECH.read_bytes() for e in found)


def test_yodas_finds_the_audio_of_every_language(tmp_path: Path) -> None:
    expected = {}
    for language, inner in (("de000", ""), ("en000", ""), ("en100", "deeper/")):
        for shard in ("00000000", "00000001"):
            name = f"{language}{shard}-00000-00000000-00000120"
            put(tmp_path / language / "text" / f"{shard}.txt", f"{name} hello\n")
            expected[name] = put(tmp_path / language / "audio" / inner / shard / f"{name}.flac")
    assert {name: Path(entry.audio) for name, entry in read("yodas", tmp_path).items()} == expected


def test_a_folder_is_walked_in_the_order_of_sorted_paths(tmp_path: Path) -> None:
    for name in (
        "b/1.wav",
        "b.wav",
        "a/z/1.wav",
        "a/1.wav",
        "a b/1.WAV",
        "a-b/1.wav",
        "Z.wav",
        "a/1.txt",
        "a.wav/1.wav",
    ):
        put(tmp_path / name, "text")
    expected = sorted(p for p in tmp_path.rglob("*") if p.is_file() and p.suffix.lower() == ".wav")
    assert [Path(entry.audio) for entry in corpora.read("folder", Corpus(tmp_path))] == expected


def test_a_folder_and_its_manifest(tmp_path: Path) -> None:
    put(tmp_path / "anna" / "1.ogg")
    put(tmp_path / "anna" / "1.txt", " He was not an ill-disposed young man,\n")
    put(tmp_path / "2.ogg")
    found = {name.partition("/")[2]: entry for name, entry in read("folder", tmp_path).items()}
    assert found["anna/1"].text == "He was not an ill-disposed young man,"
    assert found["anna/1"].speaker == "anna"
    assert found["2"].text == ""
    assert manifest.write(tmp_path / "manifest.jsonl", found.values()) == 2
    again = list(manifest.read([tmp_path / "manifest.jsonl"], lambda where, why: pytest.fail(f"{where}: {why}")))
    assert [(e.id, e.text, e.speaker) for e in again] == [(e.id, e.text, e.speaker) for e in found.values()]
    assert all(Path(e.audio).exists() for e in again)


def test_huggingface(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"id": ["x"], "audio": [{"bytes": SPEECH.read_bytes(), "path": "a.ogg"}], "sentence": ["he was"]}
    made = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    made.save_to_disk(tmp_path / "set")
    (entry,) = corpora.read("huggingface", Corpus(tmp_path / "set", name="mine", extracted=tmp_path / "sound"))
    assert (entry.id, entry.text, entry.split) == ("mine/x", "he was", "train")
    assert Path(entry.audio).read_bytes() == SPEECH.read_bytes()
    assert Path(entry.audio).is_relative_to(tmp_path / "sound")


@pytest.mark.parametrize("kind", [kind for kind in corpora.READERS if kind != "huggingface"])
def test_another_layout_is_said(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        list(corpora.read(kind, Corpus(tmp_path)))
    with pytest.raises(UserError, match="no such file"):
        list(corpora.read(kind, Corpus(tmp_path / "none")))


def test_nonsense_in_the_right_place_is_the_users_mistake(tmp_path: Path) -> None:
    put(tmp_path / "x.jsonl", '{"id": "a"}\n')
    with pytest.raises(UserError, match="not the layout of libriheavy"):
        list(corpora.read("libriheavy", Corpus(tmp_path)))
    with pytest.raises(UserError, match="unknown corpus"):
        list(corpora.read("nope", Corpus(tmp_path)))


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return path


def test_a_duplicate_names_both_lines_and_only_good_lines_count(tmp_path: Path) -> None:
    good = {"id": "x", "audio": "x.flac", "text": "word"}
    one = write_lines(tmp_path / "1.jsonl", {"id": "x", "text": "no audio"}, "\n", good, {**good, "id": "y"})
    two = write_lines(tmp_path / "2.jsonl", {**good, "id": "z"}, {**good, "id": "y"}, good, good)
    said: list[tuple[str, str]] = []
    entries = list(manifest.read([one, two], lambda where, why: said.append((where, str(why)))))
    assert [entry.id for entry in entries] == ["x", "y", "z"]
    assert said == [
        (f"{one}:1", "bad_manifest_line: audio must be a string"),
        (f"{two}:2", f"duplicate_id: y, first in {one}:4"),
        (f"{two}:3", f"duplicate_id: x, first in {one}:3"),
        (f"{two}:4", f"duplicate_id: x, first in {one}:3"),
    ]


def test_ids_of_one_digest_are_not_taken_for_each_other(tmp_path: Path) -> None:
    lines = [{"id": name, "audio": "x.flac", "text": "word"} for name in ("a", "b", "a")]
    said: list[str] = []
    path = write_lines(tmp_path / "m.jsonl", *lines)
    entries = list(manifest.read([path], lambda _, why: said.append(why.reason), digest=len))
    assert ([entry.id for entry in entries], said) == (["a", "b"], ["duplicate_id"])


def test_memory_of_a_manifest_is_a_few_bytes_a_line(tmp_path: Path) -> None:
    count = 40_000
    lines = [{"id": f"a-name-as-long-as-they-are-{i:09d}", "audio": "x.flac", "text": "word"} for i in range(count)]
    path = write_lines(tmp_path / "m.jsonl", *lines)
    warm = write_lines(tmp_path / "warm.jsonl", *lines[:2])  # imports
    program = (
        "import sys, tracemalloc; from lst_prep import manifest\n"
        "read = lambda path: sum(1 for _ in manifest.read([path], lambda *_: None))\n"
        "read(sys.argv[1]); tracemalloc.start()\n"
        "print(read(sys.argv[2]), tracemalloc.get_traced_memory()[1])"
    )
    command = [sys.executable, "-c", program, str(warm), str(path)]  # a process of its own: memory of nothing else
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 0, done.stderr
    read_lines, peak = map(int, done.stdout.split())
    assert read_lines == count
    assert peak < 80 * count  # the ids as strings in a set take over 130 bytes each; 2 MB are Python's interned names


@pytest.mark.parametrize(
    "line",
    [
        '{"id": "x", "audio": "a.flac", "text": "\\ud83d"}',
        '{"id": "\\udc00", "audio": "a.flac", "text": ""}',
        "[" * 200_000,
    ],
)
def test_what_no_later_stage_could_write_is_rejected(tmp_path: Path, line: str) -> None:
    said: list[str] = []
    good = {"id": "y", "audio": "x.flac", "text": "\U0001f600"}
    path = write_lines(tmp_path / "m.jsonl", line + "\n", good)
    assert [e.id for e in manifest.read([path], lambda _, why: said.append(why.reason))] == ["y"]
    assert said == ["bad_manifest_line"]


@pytest.mark.parametrize(
    ("audio", "root", "good"),
    [
        ("a/b.flac", "", True),
        ("a/../b.flac", "", True),
        ("../b.flac", "", False),
        ("a/../../b.flac", "", False),
        ("/elsewhere/b.flac", "", True),
        ("/elsewhere/b.flac", "{corpus}", False),
        ("/elsewhere/b.flac", "/elsewhere", True),
        ("/elsewhere/../b.flac", "/elsewhere", False),
        ("/elsewhere-too/b.flac", "/elsewhere", False),
        ("b.flac", "{corpus}", True),
        ("b.flac", "/elsewhere", False),
    ],
)
def test_a_manifest_reaches_no_other_files(tmp_path: Path, audio: str, root: str, good: bool) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "manifest.jsonl").write_text(json.dumps({"id": "x", "audio": audio, "text": "word"}) + "\n")
    said: list[str] = []
    entries = list(
        manifest.read([corpus / "manifest.jsonl"], lambda _, why: said.append(why.reason), root.format(corpus=corpus))
    )
    assert (len(entries), said) == ((1, []) if good else (0, ["outside_corpus"]))
