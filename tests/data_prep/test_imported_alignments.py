"""Alignments of other programs: each format comes back as it was written, and what is wrong in one is named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lst_prep.align import AlignedWords, Piece, make_aligner
from lst_prep.config import AlignConfig
from lst_prep.manifest import Entry
from lst_prep.reading import CannotRead, Inputs, ReadingConfig
from lst_prep.rejection import Rejection
from lst_prep.transcript import normalise
from megatron_lst.errors import UserError

TEXT = "L'été, elle dit : « vingt-deux ! » et s'en va."
WORDS = [
    ("l'été", 0.25, 0.5), ("elle", 0.5, 0.75), ("dit", 0.75, 1.0), ("vingt-deux", 1.25, 1.75), ("et", 2.0, 2.125),
    ("s'en", 2.125, 2.5), ("va", 2.5, 2.75),
]  # fmt: skip
TIMES = [[begin, end] for _, begin, end in WORDS]
SECONDS = 3.0


def textgrid(words: list[tuple[str, float, float]], path: Path, form: str = "long_textgrid") -> None:
    from praatio import textgrid as praat

    grid = praat.Textgrid()
    grid.addTier(praat.IntervalTier("phones", [(0.0, 1.0, 'a "quoted" ! phone')], 0, SECONDS))
    grid.addTier(praat.IntervalTier("words", [(begin, end, word) for word, begin, end in words], 0, SECONDS))
    grid.save(str(path), form, includeBlankSpaces=True)


def ctm(words: list[tuple[str, float, float]], path: Path) -> None:
    lines = [f"p1 1 {begin} {end - begin} {word} 0.5" for word, begin, end in words]
    path.write_text("\n".join([";; a comment", "other 1 0 1 nothing", *lines]) + "\n")


def whisper(words: list[tuple[str, float, float]], path: Path, score: str = "probability") -> None:
    listed = [{"word": f" {word}", "start": begin, "end": end, score: 0.5} for word, begin, end in words]
    path.write_text(json.dumps({"text": "", "segments": [{"words": listed[:3]}, {"words": listed[3:]}]}))


def plain(words: list[tuple[str, float, float]], path: Path) -> None:
    path.write_text(json.dumps([{"text": word, "begin": begin, "end": end} for word, begin, end in words]))


def audacity(words: list[tuple[str, float, float]], path: Path) -> None:
    path.write_text("".join(f"{begin}\t{end}\t{word}\n\\\t100\t200\n" for word, begin, end in words))


def as_utf16(words: list[tuple[str, float, float]], path: Path) -> None:
    textgrid(words, path)
    path.write_bytes(path.read_text().encode("utf-16"))


WRITERS: dict[str, tuple[str, Callable[[list[tuple[str, float, float]], Path], None]]] = {
    "long TextGrid": ("p1.TextGrid", textgrid),
    "short TextGrid": ("p1.TextGrid", lambda words, path: textgrid(words, path, "short_textgrid")),
    "UTF-16 TextGrid": ("p1.TextGrid", as_utf16),
    "CTM": ("p1.ctm", ctm),
    "Whisper": ("p1.json", whisper),
    "WhisperX": ("p1.json", lambda words, path: whisper(words, path, "score")),
    "list of words": ("p1.json", plain),
    "Audacity": ("p1.txt", audacity),
}


def aligned(path: Path, text: str = TEXT, language: str = "fr", **options: object) -> AlignedWords | Rejection:
    pattern = str(path.parent / ("{id}" + path.suffix)) if options.pop("by_id", True) else str(path)
    words = normalise(text, "keep", language, str(options.get("segmenter", "icu")))
    entry = Entry("p1", "audio/long.wav", text, options.pop("start", None), language=language)  # type: ignore[arg-type]
    samples = np.zeros(int(SECONDS * 16000), np.float32)
    piece = Piece(samples, words, language, entry, Inputs(ReadingConfig(attempts=1)))
    config = AlignConfig("import", path=pattern, **options)  # type: ignore[arg-type]
    return make_aligner(config).align_batch([piece])[0]


def good(result: AlignedWords | Rejection) -> AlignedWords:
    assert isinstance(result, AlignedWords), result
    return result


@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_written_comes_back(kind: str, tmp_path: Path) -> None:
    name, write = WRITERS[kind]
    if "TextGrid" in kind:
        pytest.importorskip("praatio")
    write(WORDS, tmp_path / name)
    found = good(aligned(tmp_path / name))
    np.testing.assert_allclose(found.seconds, TIMES, atol=1e-9)
    texts = [TEXT[begin:end] for begin, end in found.chars]
    assert texts == ["L'été,", "elle", "dit : «", "vingt-deux ! »", "et", "s'en", "va."]
    assert set(found.scores.tolist()) == ({0.5} if kind in ("CTM", "Whisper", "WhisperX") else {0.0})
    later = [(word, begin + 0.125, end + 0.125) for word, begin, end in WORDS]  # the control
    write(later, tmp_path / name)
    np.testing.assert_allclose(good(aligned(tmp_path / name)).seconds, np.array(TIMES) + 0.125, atol=1e-9)
    write([("autre", begin, end) for _, begin, end in WORDS], tmp_path / name)
    assert str(aligned(tmp_path / name)).startswith("words_differ")


def test_one_ctm_holds_all_pieces(tmp_path: Path) -> None:
    ctm(WORDS, tmp_path / "all.ctm")
    np.testing.assert_allclose(good(aligned(tmp_path / "all.ctm", by_id=False)).seconds, TIMES, atol=1e-9)
    (tmp_path / "all.ctm").write_text("p2 1 0 1 mot\n")
    assert str(aligned(tmp_path / "all.ctm", by_id=False)).startswith("no_alignment: ")
    (tmp_path / "all.ctm").write_text("p1 1 0 1 mot\np1 2 0 1 mot\n")
    assert "all.ctm:2: p1 in channels 1 and 2" in str(aligned(tmp_path / "all.ctm", by_id=False))


def test_times_of_the_file_are_those_of_its_pieces(tmp_path: Path) -> None:
    words = [("avant", 9.0, 9.9), *((word, begin + 10, end + 10) for word, begin, end in WORDS), ("après", 13.2, 14.0)]
    plain(words, tmp_path / "p1.json")
    found = good(aligned(tmp_path / "p1.json", times="file", start=10.0))
    np.testing.assert_allclose(found.seconds, TIMES, atol=1e-9)
    assert str(aligned(tmp_path / "p1.json", start=10.0)).startswith("bad_times: ")  # the control: of the piece
    assert "outside the 3.00 s of audio" in str(aligned(tmp_path / "p1.json", start=10.0))


def test_words_that_differ_a_little_are_fitted(tmp_path: Path) -> None:
    """A number that is spelled, a word that is split, one that is missing, noise, a word without times."""
    given = [
        ("[noise]", 0.0, 0.2), ("<eps>", 0.2, 0.25), *WORDS[:2], ("di", 0.75, 1.0), ("vingt", 1.25, 1.5),
        ("deux", 1.5, 1.75), ("et", 2.0, 2.125), ("sil", 2.125, 2.125), ("va", 2.5, 2.75),
    ]  # fmt: skip
    audacity(given, tmp_path / "p1.txt")
    found = good(aligned(tmp_path / "p1.txt", max_differ=0.2))
    np.testing.assert_allclose(found.seconds, TIMES, atol=1e-9)  # `s'en` takes what is left between its neighbours
    refused = str(aligned(tmp_path / "p1.txt", max_differ=0.1))
    assert refused.startswith("words_differ: 5 of ")
    assert "the first: 'dit' in the transcript, 'di' in the alignment" in refused
    whole = {"words": [{"word": word, "start": begin, "end": end} for word, begin, end in WORDS]}
    del whole["words"][3]["start"], whole["words"][3]["end"]
    (tmp_path / "p1.json").write_text(json.dumps(whole))
    np.testing.assert_allclose(good(aligned(tmp_path / "p1.json")).seconds[3], [1.0, 2.0])


def test_scripts_without_spaces_are_compared_by_characters(tmp_path: Path) -> None:
    pytest.importorskip("icu4py")
    text = "我们都是学生。你好！"
    given = [("我", 0.0, 0.25), ("们", 0.25, 0.5), ("都是学生", 0.5, 1.5), ("你好", 2.0, 2.5)]
    plain(given, tmp_path / "p1.json")
    found = good(aligned(tmp_path / "p1.json", text, "zh"))
    assert [text[begin:end] for begin, end in found.chars] == ["我们", "都是", "学生。", "你好！"]
    np.testing.assert_allclose(found.seconds, [[0, 0.5], [0.5, 1], [1, 1.5], [2, 2.5]])
    single = good(aligned(tmp_path / "p1.json", text, "zh", segmenter="characters"))
    assert len(single.seconds) == 8


HEAD = '"ooTextFile"\n"TextGrid"\n0\n1\n<exists>\n1\n'
WRONG = [
    ("p1.txt", "0\t1\tl'été\n0.5\t1.5\telle\n", "bad_times: ", "p1.txt:2: begins at 0.5 s, before the word in front"),
    ("p1.txt", "1\t0.5\tl'été\n", "bad_times: ", "p1.txt:1: ends at 0.5 s, before it begins"),
    ("p1.txt", "0\t1\tl'été\n1\t3.5\telle\n", "bad_times: ", "p1.txt:2: 1 to 3.5 s, outside the 3.00 s"),
    ("p1.txt", "0\t1\tl'été elle\n", "bad_alignment: ", "p1.txt:1: \"l'été elle\" is more than a word"),
    ("p1.txt", "0 1 x\n", "bad_alignment: ", "p1.txt:1: no tabs"),
    ("p1.txt", "0\tNaN\tx\n", "bad_alignment: ", "p1.txt:1: end is 'NaN'"),
    ("p1.ctm", "p1 1 0 1 x\np1 1 0 y\n", "bad_alignment: ", "p1.ctm:2: 4 columns"),
    ("p1.json", '{"segments": [{"text": "x"}]}', "bad_alignment: ", "word_timestamps"),
    ("p1.json", '[{"word": "x", "start": true, "end": 1}]', "bad_alignment: ", "words[0]: start is 'True'"),
    ("p1.json", "[", "bad_alignment: ", "not JSON"),
    ("p1.TextGrid", HEAD + '"IntervalTier"\n"words"\n0\n1\n2\n0\n', "bad_alignment: ", ":12: breaks off before a time"),
    ("p1.TextGrid", "RIFF", "bad_alignment: ", "breaks off before ooTextFile"),
    ("p1.TextGrid", b"\"ooTextFile\"\n\xff\xe9\n", "bad_alignment: ", "p1.TextGrid:2: not UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "reason", "place"), WRONG)
def test_what_is_wrong_is_named_with_its_place(
    name: str, content: str | bytes, reason: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = str(aligned(tmp_path / name))
    assert found.startswith(reason)
    assert place in found


def test_tiers_are_chosen_by_name(tmp_path: Path) -> None:
    praat = pytest.importorskip("praatio.textgrid")
    grid = praat.Textgrid()
    for name in ("anna", "phones"):
        grid.addTier(praat.IntervalTier(name, [(b, e, w) for w, b, e in WORDS], 0, SECONDS))
    grid.save(str(tmp_path / "p1.TextGrid"), "long_textgrid", includeBlankSpaces=True)
    assert "not one tier of words; its tiers of intervals are 'anna', 'phones'" in str(
        aligned(tmp_path / "p1.TextGrid")
    )
    np.testing.assert_allclose(good(aligned(tmp_path / "p1.TextGrid", tier="anna")).seconds, TIMES, atol=1e-9)


def test_a_missing_file_is_a_rejection_and_a_missing_folder_is_not(tmp_path: Path) -> None:
    assert str(aligned(tmp_path / "p1.json")) == f"no_alignment: {tmp_path / 'p1.json'}"
    with pytest.raises(CannotRead):
        aligned(tmp_path / "away" / "p1.json")


def test_ids_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("[]")
    entry = Entry("../secret", "a.wav", "x")
    piece = Piece(np.zeros(16000, np.float32), normalise("x", "keep"), "en", entry, Inputs())
    config = AlignConfig("import", path=str(tmp_path / "in" / "{id}.json"))
    assert str(make_aligner(config).align_batch([piece])[0]).startswith("outside_corpus: ")


@pytest.mark.parametrize(
    ("path", "message"),
    [("a/{name}.ctm", "{name} is not one of"), ("a/{id}.xml", "says no format"), ("a/b.json", "one file for all")],
)
def test_paths_that_name_no_piece_are_refused(path: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_aligner(AlignConfig("import", path=path))
