"""Languages beyond English: words, numbers and statistics, and a French and a Chinese preparation to its shards."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lst_prep.config import AlignConfig, JobConfig, LanguageAligner, PrepConfig, TextSource, UnitsConfig
from lst_prep.languages import language_tag
from lst_prep.languages.breaks import segmenter
from lst_prep.manifest import read
from lst_prep.pipeline import run
from lst_prep.plausible import doubts
from lst_prep.rejection import Rejection
from lst_prep.tokenizer import load_tokenizer
from lst_prep.transcript import check_rate, normalise
from lst_prep.word_runs import encode_runs
from megatron_lst.documents.heldout import HeldOut, sentence_spans
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import UserError


def words(text: str, language: str, numbers: str = "spell", breaks: str = "icu") -> list[tuple[str, tuple[str, ...]]]:
    return [(text[w.begin : w.end], w.spoken) for w in normalise(text, numbers, language, breaks)]


def test_tags() -> None:
    known = ("FRA", "fr_CA", "cmn", "zh-Hant", "sr")
    assert [language_tag(text) for text in known] == ["fr", "fr-CA", "zh", "zh-Hant", "sr"]
    assert [language_tag(text) for text in ("", "french!", "f", "../x")] == [None] * 4


def test_words_keep_the_letters_of_their_language() -> None:
    assert [s for _, s in words("L’Été, où ÇA ?", "fr")] == [("l'été",), ("où",), ("ça",)]
    assert [s for _, s in words("Привет, как-то мир!", "ru")] == [("привет",), ("как", "то"), ("мир",)]
    assert [s for _, s in words("DIYARBAKIR İyi", "tr")] == [("dıyarbakır",), ("iyi",)]
    assert [s for _, s in words("हाँ, की", "hi")] == [("हाँ",), ("की",)]
    assert words("café", "en") == [("café", ("cafe",))]  # English is as it was
    with pytest.raises(Rejection, match="language"):
        words("Привет", "en")
    with pytest.raises(Rejection, match="language: '5€': how '€' is said in 'fr' is not known"):
        words("5€", "fr")


def test_numbers_are_said_in_the_language() -> None:
    pytest.importorskip("icu4py")
    assert [s for _, s in words("Il a 21 ans.", "fr")] == [("il",), ("a",), ("vingt", "et", "un"), ("ans",)]
    assert words("1987", "de")[0][1] == ("eintausendneunhundertsiebenundachtzig",)  # without ICU's soft hyphens
    assert words("007", "es")[0][1] == ("cero", "cero", "siete")
    assert words("21", "fr", "keep") == [("21", ("21",))]
    for text, language, why in (
        ("1.500", "fr", "several ways"), ("1er", "fr", "several ways"), ("12", "tlh", "cannot spell"),
    ):  # fmt: skip
        with pytest.raises(Rejection, match=f"number: .*{why}"):
            words(text, language)
    with pytest.raises(Rejection, match="number: 21"):
        words("21", "fr", "reject")


def test_words_of_scripts_without_spaces() -> None:
    assert [w for w, _ in words("我们都是a1。", "zh", "keep", "characters")] == ["我", "们", "都", "是", "a1。"]
    pytest.importorskip("icu4py")
    assert [w for w, _ in words("我们都是学生。", "zh")] == ["我们", "都是", "学生。"]
    assert [w for w, _ in words("「日本語」は楽しいです。", "ja")] == ["「日本語」", "は", "楽しい", "です。"]
    assert [s for _, s in words("ภาษาไทย ง่ายมาก", "th")] == [("ภาษา",), ("ไทย",), ("ง่าย",), ("มาก",)]


def test_a_segmenter_of_the_users_is_held_to_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("cutters")
    module.pairs = lambda text: [text[i : i + 2] for i in range(0, len(text), 2)]  # type: ignore[attr-defined]
    module.loses = lambda text: [text[0]]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cutters", module)
    assert [w for w, _ in words("我们都是学", "zh", "keep", "cutters:pairs")] == ["我们", "都是", "学"]
    with pytest.raises(UserError, match="leave out '们'"):
        words("我们", "zh", "keep", "cutters:loses")
    with pytest.raises(UserError, match="is not icu, characters, or a function"):
        segmenter("cutters:nothing")


TEXTS = ["我们都是学生。 你好，世界！", "ภาษาไทยง่ายมาก ครับ", "龘龘a世界 b", "un deux", "日本語は楽しい"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_words_are_those_of_the_text(text: str) -> None:
    tokenizer = load_tokenizer("mistral-v1")
    chars = np.array([(w.begin, w.end) for w in normalise(text, "keep", "zh", "characters")])
    ids, spans, owner = encode_runs(tokenizer, text, chars)
    assert ids.tolist() == tokenizer.encode(text)
    assert spans[0, 0] == 0
    assert spans[-1, 1] == len(ids)
    assert (spans[1:, 0] == spans[:-1, 1]).all()
    assert (np.diff(spans, axis=1) > 0).all()
    for word in range(len(spans)):
        members = np.flatnonzero(owner == word)
        assert tokenizer.decode(ids[slice(*spans[word])].tolist()) == text[chars[members[0], 0] : chars[members[-1], 1]]


def test_a_word_that_begins_inside_of_a_piece_joins_the_one_before() -> None:
    tokenizer, text = load_tokenizer("mistral-v1"), "abcdefg"
    chars = np.array([(i, i + 1) for i in range(7)])
    ids, spans, owner = encode_runs(tokenizer, text, chars)
    assert ids.tolist() == tokenizer.encode(text)
    assert len(spans) == len(ids) < 7
    assert owner.tolist() == sorted(owner.tolist())


def test_rates_and_sentences_are_of_the_script() -> None:
    thai = normalise("ภาษาไทยง่ายมาก" * 3, "keep", "th", "characters")
    check_rate(thai, 3.0, 7.0)  # 42 characters, 14 words
    with pytest.raises(Rejection, match="words_too_fast"):
        check_rate(normalise(" ".join("a" * 42), "keep"), 3.0, 7.0)
    for text in ("你好。世界！", "مرحبا؟ نعم۔", "हाँ। नहीं।", "ជា។ ទេ។", "Привет. Мир!"):
        assert len(sentence_spans(text)) == 2
    held = HeldOut()
    held.add("我们都是学生，今天天气很好。")
    assert held.find("他说：我们都是学生，今天天气很好。再见。")
    assert not held.find("今天下雨。")


def test_what_an_aligner_does_not_know_is_refused(tmp_path: Path) -> None:
    manifest = str(tmp_path / "m.jsonl")
    with pytest.raises(UserError, match="language is 'fr', and the pocketsphinx aligner knows English alone"):
        PrepConfig(manifests=(manifest,), language="fr")
    with pytest.raises(UserError, match=r"languages.news is 'zh'"):
        PrepConfig(manifests=(manifest,), languages={"news": "zh"})
    with pytest.raises(UserError, match=r"languages.news: 'chinois!' is no tag"):
        PrepConfig(manifests=(manifest,), languages={"news": "chinois!"})
    with pytest.raises(UserError, match="align.model: the ctc aligner needs"):
        PrepConfig(align=AlignConfig(languages=(LanguageAligner("fr"),)))
    config = PrepConfig(
        manifests=(manifest,), languages={"news": "cmn"},
        align=AlignConfig(languages=(LanguageAligner("zh", "import", path="a/{id}.ctm"),)),
    )  # fmt: skip
    assert [config.language_of("news"), config.language_of("x"), config.language_of("news", "FRA")] == [
        "zh",
        "en",
        "fr",
    ]
    assert config.align.of("zh-Hant").aligner == "import"
    assert config.align.of("fr").aligner == "pocketsphinx"
    (tmp_path / "m.jsonl").write_text(
        '{"id": "a", "audio": "a", "text": "x", "language": "fr"}\n'
        '{"id": "b", "audio": "a", "text": "x", "lang": "fr"}\n'
        '{"id": "c", "audio": "a", "text": "x", "language": "f!"}\n'
    )
    refused: list[str] = []
    entries = list(read([manifest], lambda where, rejection: refused.append(str(rejection))))
    assert [entry.language for entry in entries] == ["fr"]
    assert ["here it is called language" in refused[0], "is no tag such as" in refused[1]] == [True, True]


FRENCH = ["L'été, il fait chaud.", "Où vas-tu ?", "Il a 21 ans."]
CHINESE = ["我们都是学生。", "今天天气很好！", "你好，世界。"]


def corpus(folder: Path) -> str:
    """Noise with made-up alignments: what is said does not matter to units of MFCC."""
    rng, lines = np.random.default_rng(0), list[dict[str, object]]()
    (folder / "alignments").mkdir()
    for language, texts in (("fr", FRENCH), ("zh", CHINESE)):
        for i, text in enumerate(texts):
            name = f"{language}-{i}"
            said = [part for word in normalise(text, "keep", language, "characters") for part in word.spoken]
            seconds = 0.25 * len(said) + 0.5
            soundfile.write(folder / f"{name}.wav", rng.normal(0, 0.1, int(seconds * 16000)), 16000)
            times = [{"word": w, "start": 0.25 + 0.25 * j, "end": 0.5 + 0.25 * j} for j, w in enumerate(said)]
            (folder / "alignments" / f"{name}.json").write_text(json.dumps(times))
            line = {"id": name, "audio": f"{name}.wav", "text": text, "document": f"doc-{language}", "source": language}
            lines.append({**line, "language": language})
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "m.jsonl")


def test_french_and_chinese_from_audio_to_rows(tmp_path: Path) -> None:
    pytest.importorskip("icu4py")
    manifest = corpus(tmp_path)
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": "ที่นี่มีภาษาไทย"}) + "\n")
    config = PrepConfig(
        manifests=(manifest,),
        text=(TextSource("thai", str(tmp_path / "t.jsonl")),),
        out=str(tmp_path / "out"),
        units=UnitsConfig(codebook_size=8),
        align=AlignConfig("import", path=str(tmp_path / "alignments" / "{id}.json")),
        languages={"thai": "th"},
        jobs=JobConfig(workers=1),
    )
    summary = run(config, quiet=True)
    assert summary["rejected"] == {}
    found = {document.id: document for document in ShardSet.open(tmp_path / "out" / "speech")}
    french, chinese = found["doc-fr"], found["doc-zh"]
    assert french.text == " ".join(FRENCH)
    assert chinese.text == "".join(CHINESE)  # no spaces where a script has none
    expected = ["L'été,", "il", "fait", "chaud.", "Où", "vas-tu ?", "Il", "a", "21", "ans."]
    assert [french.text[a:b] for a, b in french.word_chars] == expected
    assert [chinese.text[a:b] for a, b in chinese.word_chars][:6] == [
        "我们",
        "都是",
        "学生。",
        "今天",
        "天气",
        "很好！",
    ]
    assert abs(chinese.word_frames[0, 0] - 6.25) <= 1
    assert abs(chinese.word_frames[0, 1] - 18.75) <= 1  # two characters of a quarter of a second
    tokenizer = load_tokenizer("mistral-v1")
    for document in (french, chinese):
        document.check(8, 32000)
        assert document.token_ids.tolist() == tokenizer.encode(document.text)
        assert doubts(document, tokenizer.info, tokenizer) == []
    languages = summary["languages"]
    assert set(languages) == {"speech/fr", "speech/zh", "text/th"}
    assert languages["speech/zh"]["words"] == pytest.approx(16 * 5 / 6)
    assert languages["speech/fr"]["words"] == 10
    assert languages["text/th"]["pieces"] / languages["text/th"]["words"] > 1.5
    page = (tmp_path / "out" / "report.md").read_text()
    assert "speech/zh" in page
    assert "pieces a word" in page


def test_lines_of_a_language_without_an_aligner_are_counted(tmp_path: Path) -> None:
    manifest = corpus(tmp_path)
    config = PrepConfig(
        manifests=(manifest,), out=str(tmp_path / "out"), units=UnitsConfig(codebook_size=8), jobs=JobConfig(workers=1),
        align=AlignConfig(
            "import", path=str(tmp_path / "nothing" / "{id}.json"), segmenter="characters",
            languages=(LanguageAligner("fr", "import", path=str(tmp_path / "alignments" / "{id}.json")),),
        ),
    )  # fmt: skip
    (tmp_path / "nothing").mkdir()
    summary = run(config, quiet=True)
    assert summary["rejected"] == {"no_alignment": 3}
    assert set(summary["languages"]) == {"speech/fr"}


def test_costly_tokenizers_are_warned_of() -> None:
    from lst_prep.summary import Summary

    summary = Summary()
    for words_, pieces in ((10, 30), (10, 25)):
        totals = {"documents": 1, "seconds": 0, "words": words_, "pieces": pieces}
        summary.add({"languages": {"text/ka": totals}})
    (warning,) = summary.content("p", {}, 0, 0.1, 2.5)["warnings"]
    assert warning.startswith("text/ka: 2.8 text pieces a word (warn_pieces: 2.5)")
    assert summary.content("p", {}, 0, 0.1, 3.0)["warnings"] == []
