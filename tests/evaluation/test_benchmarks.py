"""Readers on tiny files in each published format, preparation with a real synthesiser, and prepared folders."""

import csv
import json
import shutil
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_lst.config.schema import PatchingConfig
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.evaluation.benchmarks import READERS, PreparedTask, read_prepared, write_prepared
from megatron_lst.evaluation.benchmarks.prepare import choose_synthesiser, prepare, synthesise
from megatron_lst.evaluation.benchmarks.prepared import PreparedItem, Side
from megatron_lst.evaluation.benchmarks.questions import questions
from megatron_lst.evaluation.items import scored_chunk
from megatron_lst.patching.strategies import ALIGNED, Patcher, static_patcher
from megatron_lst.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=24, speech_size=9, multiple=8)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(b"\0\0" * 1600)
    return path


def test_hellaswag(tmp_path: Path) -> None:
    good = {"ind": 24, "ctx": "A man sits.", "endings": ["he a.", "he b.", "he c.", "he d."], "label": 3}
    lines = [good, {**good, "ind": 25, "endings": ["x", "", "y", "z"]}, {"ind": 26}, {**good, "ind": 27, "label": 9}]
    (tmp_path / "hellaswag_val.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n")
    task = READERS["hellaswag"](tmp_path)
    assert [(i.id, i.answer, i.candidates[3].text) for i in task.items] == [("24", 3, "he d.")]
    assert task.items[0].prompt.text == "A man sits."  # type: ignore[union-attr]
    assert set(task.refused) == {"25", "26", "27", "line-5"}
    assert "3 endings" in task.refused["25"]


def test_hellaswag_without_wikihows_headings(tmp_path: Path) -> None:
    said = "[header] How to sit [title] Find a chair. [step] Look around."
    record = {"ind": 1, "ctx": said, "endings": ["[substeps] a.", "b.", "c.", "d."], "label": "2"}
    (tmp_path / "hellaswag_val.jsonl").write_text(json.dumps(record))
    (item,) = READERS["hellaswag"](tmp_path).items
    assert item.prompt.text == "How to sit. Find a chair. Look around."  # type: ignore[union-attr]
    assert (item.candidates[0].text, item.answer) == ("a.", 2)


def test_storycloze(tmp_path: Path) -> None:
    header = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
    header += "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
    rows = 'a,One.,Two.,"Three, yes.",Four.,Right.,Wrong.,1\nb,One.,Two.,Three.,Four.,,Wrong.,1\nc,1,2,3,4,5,6,7\n'
    (tmp_path / "cloze_test_val.csv").write_text(header + rows)
    task = READERS["storycloze"](tmp_path)
    assert task.name == "storycloze"
    assert [(i.id, i.answer) for i in task.items] == [("a", 0)]
    assert task.items[0].prompt.text == "One. Two. Three, yes. Four."  # type: ignore[union-attr]
    assert task.refused["b"] == "an ending is missing"
    assert set(task.refused) == {"b", "c"}
    (tmp_path / "cloze_test_val.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no column InputSentence1"):
        READERS["storycloze"](tmp_path)


def test_zerospeech_pairs_by_voice(tmp_path: Path) -> None:
    lines = ["id,filename,voice,word,correct", "1,a,A,brick,1", "1,b,A,blick,0", "1,c,B,brick,1", "1,d,B,blick,0"]
    lines += ["2,a,A,only,1"]
    (tmp_path / "gold.csv").write_text("\n".join(lines))
    for name in "abc":
        touch(tmp_path / f"{name}.wav")
    task = READERS["zerospeech"](tmp_path)
    assert task.name == "swuggy"
    assert [(i.id, i.prompt, i.answer) for i in task.items] == [("1-A", None, 0)]
    assert [c.audio.name for c in task.items[0].candidates] == ["a.wav", "b.wav"]  # type: ignore[union-attr]
    assert "audio missing for one choice" in task.refused["1-B"]
    assert "2-A" in task.refused


def test_numbered_pairs(tmp_path: Path) -> None:
    for name in ("0_x", "1_y", "2+a", "10_z", "11_w"):
        touch(tmp_path / "sub" / f"{name}.wav")
    task = READERS["numbered"](tmp_path / "sub")
    assert [i.id for i in task.items] == ["0", "5"]
    assert [c.audio.name for c in task.items[1].candidates] == ["10_z.wav", "11_w.wav"]  # type: ignore[union-attr]
    assert task.refused == {"1": "the recording of number 3 is missing"}
    for name in ("0_x", "1_y"):
        touch(tmp_path / "sub" / "voice" / f"{name}.wav")
    assert [i.id for i in READERS["numbered"](tmp_path / "sub").items] == ["./0", "./5", "voice/0"]
    touch(tmp_path / "sub" / "1_again.wav")
    with pytest.raises(UserError, match="two recordings of number 1"):
        READERS["numbered"](tmp_path / "sub")


def test_salmon(tmp_path: Path) -> None:
    for name in ("sample_0_0", "sample_0_1", "sample_1_0", "other"):
        touch(tmp_path / "gender_consistency" / f"{name}.wav")
    task = READERS["salmon"](tmp_path / "gender_consistency")
    assert (task.name, [i.id for i in task.items]) == ("salmon_gender_consistency", ["0"])
    assert set(task.refused) == {"1", "other.wav"}


def test_questions(tmp_path: Path) -> None:
    touch(tmp_path / "q.wav")
    lines = [
        {"id": "a", "question": "Who?", "answers": ["me", "I"], "audio": "q.wav"},
        {"id": "b", "question": "Who?", "answer": "me"},
        {"id": "c", "question": "Who?", "answers": []},
        {"id": "d", "question": "Who?", "answer": "me", "audio": "none.wav"},
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found, refused = questions(tmp_path)
    assert [(q.id, q.answers) for q in found] == [("a", ("me", "I")), ("b", ("me",))]
    assert set(refused) == {"c", "d"}


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_questions_of_openaudiobench(tmp_path: Path) -> None:
    rows: dict[str, dict[str, str]] = {
        "llama_questions": {"Questions": "What is the capital of France?", "Answer": "Paris, France"},
        "web_questions": {"question": "who is his daughter?", "answers": "Ann Lee; Bo Lee"},
        "trivia_qa": {"question": "Which film?", "answer_normalized_value": "jaws",
                      "answer_normalized_aliases": "['jaws', 'jaws film']"},
    }  # fmt: skip
    accepted = {
        "llama_questions": ("Paris, France",),
        "web_questions": ("Ann Lee", "Bo Lee"),
        "trivia_qa": ("jaws", "jaws film"),
    }
    for name, row in rows.items():
        touch(tmp_path / name / "audios" / "0.wav")
        gone = {**row, "audio_filename": "gone.wav"}
        write_csv(tmp_path / name / f"{name}.csv", [{**row, "audio_filename": "0.wav"}, gone])
        found, refused = questions(tmp_path / name)
        assert [q.answers for q in found] == [accepted[name]], name
        assert found[0].audio == tmp_path / name / "audios" / "0.wav"
        assert "audio missing" in refused["line-2"]


def test_questions_of_the_text_sets(tmp_path: Path) -> None:
    answer = {"Value": "Jaws", "Aliases": ["Jaws", "Jaws (film)"], "NormalizedValue": "jaws"}
    trivia = {"Data": [{"Question": "Which film?", "QuestionId": "t_1", "Answer": answer}]}
    (tmp_path / "trivia.json").write_text(json.dumps(trivia))
    found, _ = questions(tmp_path / "trivia.json")
    assert [(q.id, q.answers, q.audio) for q in found] == [("t_1", ("Jaws", "Jaws (film)"), None)]
    web = [{"utterance": "who?", "targetValue": '(list (description "Ann Lee") (description Bo))', "url": "u"}]
    (tmp_path / "web.json").write_text(json.dumps(web))
    assert questions(tmp_path / "web.json")[0][0].answers == ("Ann Lee", "Bo")
    (tmp_path / "bad.json").write_text('{"Other": []}')
    with pytest.raises(UserError, match="cannot be read as questions"):
        questions(tmp_path / "bad.json")
    (tmp_path / "none.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="not one question"):
        questions(tmp_path / "none.csv")


def test_questions_in_parquet_bring_their_audio(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    sound = touch(tmp_path / "x.wav").read_bytes()
    rows = [{"question": "Who?", "answer": "me", "audio": {"bytes": sound, "path": "a.wav"}}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    (tmp_path / "out").mkdir()
    ((question,), _) = questions(tmp_path / "test.parquet", tmp_path / "out")
    assert question.answers == ("me",)
    assert question.audio is not None
    assert question.audio.read_bytes() == sound
    assert questions(tmp_path / "test.parquet")[0][0].audio is None


def test_prepared_round_trip_and_directions(tmp_path: Path) -> None:
    both = Side([5, 6], 9, [1, 2, 3])
    items = [
        PreparedItem("a", both, (both, Side([7], 2, [4])), 1),
        PreparedItem("b", Side([5], 3), (Side([7], 2), Side([8], 2)), 0),
    ]
    task = PreparedTask("t", items, {"x": "no"}, {"tokenizer": {"fingerprint": "1"}})
    write_prepared(tmp_path / "t", task)
    again = read_prepared(tmp_path / "t")
    assert (again.items, again.refused, again.metadata) == (task.items, task.refused, task.metadata)
    assert again.directions() == ["S->S", "T->T", "S->T", "T->S"]
    crossed, refused = again.choice_items("S->T")
    assert [i.id for i in crossed] == ["a"]
    assert set(refused) == {"x", "b"}
    assert crossed[0].prompt[0].modality == "speech"
    assert crossed[0].candidates[1].ids.tolist() == [7]
    again.check_fingerprints({"tokenizer": {"fingerprint": "1"}})
    with pytest.raises(UserError, match="prepared with the tokenizer 1, the model was trained with 2"):
        again.check_fingerprints({"tokenizer": {"fingerprint": "2"}})
    (tmp_path / "t" / "items.jsonl").write_text("{}\n")
    with pytest.raises(DamagedDataError, match="item 0"):
        read_prepared(tmp_path / "t")
    with pytest.raises(UserError, match=r"no task\.json"):
        read_prepared(tmp_path)


def test_aligned_patches_need_the_times_of_words_and_cut_there(tmp_path: Path) -> None:
    """SPEC 9: aligned boundaries for a model of aligned patches. The control is the static cut of the same item."""
    timed = Side([5, 6], 9, list(range(9)), words=[[1, 4], [4, 8]], pieces=[[1, 3], [3, 3], [3, 4], [4, 8]])
    bare = Side([5, 6], 9, list(range(9)))
    items = [PreparedItem("timed", timed, (timed, timed), 0), PreparedItem("bare", timed, (bare, timed), 0)]
    write_prepared(tmp_path / "t", PreparedTask("t", items))
    task = read_prepared(tmp_path / "t")
    assert task.items == items

    def lengths(patcher: Patcher) -> list[int]:
        (item, *_), _ = task.choice_items("S->S", patcher)
        item.check(VOCABULARY)
        chunk = scored_chunk((*item.prompt, item.candidates[0]), 1, VOCABULARY, patcher, item.id).chunk
        return chunk.patch_length[2:].tolist()

    def aligned(**changes: Any) -> Patcher:
        return Patcher(ALIGNED, PatchingConfig(**changes))

    assert lengths(aligned()) == [1, 3, 4, 1] * 2
    assert lengths(aligned(silence="merged")) == [4, 5] * 2
    assert lengths(aligned(granularity="bpe")) == [1, 2, 1, 4, 1] * 2
    assert lengths(aligned(max_length=2)) == [1, 2, 1, 2, 2, 1] * 2
    assert lengths(static_patcher(4)) == [4, 4, 4, 4, 2], "the counter goes on over the join"
    found, refused = task.choice_items("S->S", aligned())
    assert [i.id for i in found] == ["timed"]
    assert "no times of words" in refused["bare"]
    assert "--aligner" in refused["bare"]
    assert [i.id for i in task.choice_items("T->T", aligned())[0]] == ["timed", "bare"], "text needs no times"
    assert [i.id for i in task.choice_items("S->S", static_patcher(4))[0]] == ["timed", "bare"]


@pytest.mark.skipif(not (shutil.which("flite") or shutil.which("espeak-ng")), reason="needs flite or espeak-ng")
def test_prepares_speech_with_a_synthesiser_and_refuses_by_id(tmp_path: Path) -> None:
    line = {"ctx": "A man sits down.", "endings": ["He eats.", "She flies away.", "It rains.", "No."], "label": 0}
    lines = [{**line, "ind": 1}, {**line, "ind": 2, "ctx": "Broken."}]
    (tmp_path / "hellaswag_val.jsonl").write_text("\n".join(map(json.dumps, lines)))
    seen: list[float] = []

    def encode_audio(path: Path) -> np.ndarray:
        with wave.open(str(path)) as file:
            seen.append(file.getnframes() / file.getframerate())
        return np.zeros(int(25 * seen[-1]), np.int16)

    def encode_text(text: str, continuing: bool) -> list[int]:
        if text == "Broken.":
            raise UserError("cannot be tokenised")
        return [int(continuing), len(text)]

    raw = READERS["hellaswag"](tmp_path)
    task = prepare(
        raw, encode_text=encode_text, encode_audio=encode_audio, tts=choose_synthesiser(None), metadata={}
    )  # fmt: skip
    assert [i.id for i in task.items] == ["1"]
    assert task.refused == {"2": "cannot be tokenised"}
    assert task.items[0].prompt.ids == [0, 16]  # type: ignore[union-attr]
    assert task.items[0].candidates[0].ids == [1, 8]
    assert task.directions() == ["S->S", "T->T", "S->T", "T->S"]
    assert all(0.2 < s < 5 for s in seen)
    assert len(seen) == 5, "prompt and endings are synthesised apart"


def test_synthesiser_commands_are_checked() -> None:
    with pytest.raises(UserError, match="needs {text}"):
        choose_synthesiser("espeak hello")
    with pytest.raises(UserError, match="no-such-tts is not installed"):
        choose_synthesiser("no-such-tts {text} {wav}")
    with pytest.raises(UserError, match=r"false failed \(1\)"):
        synthesise("false {text} {wav}", "hello", Path("/tmp/never.wav"))
