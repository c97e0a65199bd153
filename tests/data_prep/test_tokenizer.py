"""Tokenizers: what was saved with a file does not decide, and text that does not come back is refused."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from lst_prep.config import JobConfig, PrepConfig, TextSource
from lst_prep.pipeline import run
from lst_prep.tokenizer import check_round_trip, encode_words, load_tokenizer
from megatron_lst.errors import UserError

LONG = " ".join(f"Sentence {i} is about the sea." for i in range(300))
QUOTING = "A web page writes <|endoftext|> and <|end|> and goes on about the sea."


@pytest.fixture(params=["plain", "truncating", "padding", "end not special"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    model.train_from_iterator([LONG], trainer)
    model.add_special_tokens([AddedToken("<|end|>", special=True)])
    if request.param == "truncating":
        model.enable_truncation(128)
    if request.param == "padding":
        model.enable_padding(length=256, pad_id=0, pad_token="<|endoftext|>")
    path = tmp_path / "tokenizer.json"
    model.save(str(path))
    if request.param == "end not special":
        content = json.loads(path.read_text())
        content["added_tokens"][0]["special"] = False
        path.write_text(json.dumps(content))
    if request.param != "plain":  # the control: the file as it was saved does not give the text back
        text = QUOTING if request.param == "end not special" else LONG if request.param == "truncating" else "the sea"
        raw = Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
        whole = Tokenizer.from_file(str(path)).decode(raw, skip_special_tokens=False)
        assert whole != text or 0 in raw
    return path


@pytest.mark.parametrize("text", [LONG, QUOTING, "the sea"])
def test_habits_that_were_saved_do_not_decide(saved: Path, text: str) -> None:
    tokenizer = load_tokenizer(str(saved))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.info.eos not in ids
    by_word, spans = encode_words(tokenizer, text.split())
    assert tokenizer.decode(by_word.tolist()) == text
    assert len(spans) == len(text.split())


def test_ids_may_have_holes(tmp_path: Path) -> None:
    model = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "sea": 900}, unk_token="<s>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(str(tmp_path / "tokenizer.json")).info.size == 901


def few_words(tmp_path: Path) -> Path:
    words = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *LONG.replace(".", " . ").split()])}
    model = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save(str(tmp_path / "few.json"))
    return tmp_path / "few.json"


def test_text_that_does_not_come_back_is_refused_at_the_start(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(few_words(tmp_path)))
    check_round_trip(tokenizer, [("sea", LONG)])  # the control: its own words
    with pytest.raises(UserError, match=r"only \d+% of the text of source 'zh' comes back.*天气"):
        check_round_trip(tokenizer, [("sea", LONG), ("zh", "今天天气很好。我们去公园。")])
    check_round_trip(tokenizer, [("web", LONG)] * 2 + [("web", "One page of 今天天气很好.")])  # a few of many
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "Captains answer questions nobody asked."}))
    source = TextSource("web", str(tmp_path / "x.jsonl"))
    config = PrepConfig(
        text=(source,), tokenizer=str(few_words(tmp_path)), out=str(tmp_path / "out"), jobs=JobConfig(workers=1)
    )
    with pytest.raises(UserError, match="text of source 'web' comes back"):
        run(config, quiet=True)
    assert not (tmp_path / "out" / "text").exists()


@pytest.mark.parametrize(
    "text",
    [
        "Ünïcode, ½ of it — “quoted”…",
        "今天天气很好。",
        "हाँ की",
        "<s> quoted </s>",
        "  spaces   and\n\nlines",
        "😀😀",
        "...",
    ],
)
def test_the_bundled_tokenizer_gives_text_back(text: str) -> None:
    check_round_trip(load_tokenizer("mistral-v1"), [("any", text)])


def of_an_llm(folder: Path, pieces: int, added: list[str], config: dict[str, object] | None) -> Path:
    """A byte-level BPE of so many pieces, with added tokens behind them, as LLMs publish theirs."""
    from itertools import count

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {piece: i for i, piece in enumerate(alphabet)}
    names = (f"{a}{b}{c}" for a in alphabet for b in alphabet for c in alphabet)
    for i in count(len(words)):
        if i == pieces:
            break
        words[next(names)] = i
    model = Tokenizer(models.BPE(vocab=words, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([AddedToken(name, special=True) for name in added])
    folder.mkdir(exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_150_000_pieces_no_bos_and_several_eos(tmp_path: Path) -> None:
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    folder = of_an_llm(tmp_path / "q", 151_643, added, {"bos_token": None, "eos_token": "<|im_end|>"})
    tokenizer = load_tokenizer(str(folder))
    info = tokenizer.info
    assert (info.size, info.bos, info.eos) == (151_646, 151_643, 151_643)  # pretraining's, not the chat's
    quoting = "Chats end in <|im_end|>, texts in <|endoftext|>."
    ids = tokenizer.encode(quoting)
    assert tokenizer.decode(ids) == quoting and max(ids) < 151_643


def test_names_that_nobody_knows_are_read_from_the_configuration_beside(tmp_path: Path) -> None:
    begin, end = "<|begin▁of▁sentence|>", "<|end▁of▁sentence|>"
    config = {"bos_token": {"content": begin, "special": True}, "eos_token": end}
    info = load_tokenizer(str(of_an_llm(tmp_path / "d", 300, [begin, end], config))).info
    assert (info.size, info.bos, info.eos) == (302, 300, 301)
    with pytest.raises(UserError, match="documents need an EOS: name it as eos_token"):
        load_tokenizer(str(of_an_llm(tmp_path / "n", 300, [begin, end], None)))  # the control


def test_a_sentencepiece_model_without_bos_begins_documents_with_eos(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceTrainer

    (tmp_path / "text").write_text(LONG.replace(". ", ".\n"))
    common = f"--input={tmp_path / 'text'} --vocab_size=60 --hard_vocab_limit=false --bos_id=-1"
    SentencePieceTrainer.train(f"{common} --model_prefix={tmp_path / 'm'}")
    info = load_tokenizer(str(tmp_path / "m.model")).info
    assert info.bos == info.eos >= 0
    SentencePieceTrainer.train(f"{common} --model_prefix={tmp_path / 'n'} --eos_id=-1")
    with pytest.raises(UserError, match="no EOS piece"):
        load_tokenizer(str(tmp_path / "n.model"))
