"""CTC checkpoints of any vocabulary, and Whisper as an aligner: with tiny weights made here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lst_prep.align import AlignedWords, Piece, make_aligner
from lst_prep.align.ctc import CtcAligner
from lst_prep.align.vocabulary import Vocabulary
from lst_prep.align.whisper import WhisperAligner, frame_power, token_edges, trimmed
from lst_prep.config import AlignConfig
from lst_prep.manifest import Entry
from lst_prep.rejection import Rejection
from lst_prep.transcript import normalise
from megatron_lst.errors import UserError
from tests.data_prep.test_neural import KERNELS, SMALL

transformers = pytest.importorskip("transformers")


def checkpoint(folder: Path, vocab: dict[str, int], **tokenizer: object) -> str:
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        **SMALL, conv_kernel=KERNELS, conv_stride=(5, 2, 2, 2, 2, 2, 2), vocab_size=len(vocab), pad_token_id=1
    )
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    if tokenizer:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return str(folder)


def planted(aligner: CtcAligner, plan: list[int], size: int, text: str, language: str) -> AlignedWords | Rejection:
    """The alignment of emissions that say which id is in which frame."""
    log_probs = np.full((len(plan), size), -20.0, np.float32)
    log_probs[np.arange(len(plan)), plan] = -0.1
    piece = Piece(np.zeros(len(plan) * 320, np.float32), normalise(text, "reject", language, "characters"), language)
    return aligner.align_emissions([piece], [log_probs])[0]


def test_letters_blank_and_delimiter_are_the_checkpoints(tmp_path: Path) -> None:
    """Cyrillic, blank `<blank>` at 0 beside a padding token, a delimiter of its own."""
    vocab = {"<blank>": 0, "<pad>": 1, "_": 2, **{ch: 3 + i for i, ch in enumerate("еимпртв-")}}
    aligner = CtcAligner(AlignConfig("ctc", checkpoint(tmp_path, vocab, word_delimiter_token="_")))
    p, r, i, v, e, t, m = (vocab[ch] for ch in "приветм")
    plan = [0, p, p, r, i, v, e, t, 0, 2, 0, 0, m, i, i, r, 0]
    found = planted(aligner, plan, len(vocab), "Привет, мир!", "ru")
    assert isinstance(found, AlignedWords)
    np.testing.assert_allclose(found.seconds, np.array([[1, 8], [12, 16]]) * 0.02)
    assert found.scores.tolist() == pytest.approx([-0.1, -0.1])
    wrong = planted(aligner, plan, len(vocab), "Мир, привет!", "ru")  # the control
    assert not isinstance(wrong, AlignedWords) or wrong.scores.mean() < -5
    missing = planted(aligner, plan, len(vocab), "Да", "ru")
    assert str(missing) == "language: the acoustic model has no 'д'; a model of romanised text: align.romanise"


def test_no_delimiter_where_a_script_has_no_spaces(tmp_path: Path) -> None:
    vocab = {"<pad>": 0, "x": 1, "|": 2, "你": 3, "好": 4, "吗": 5}
    aligner = CtcAligner(AlignConfig("ctc", checkpoint(tmp_path, vocab)))
    aligner._vocabulary.blank = aligner._blank = 0
    ids, owners = aligner._targets(normalise("你好 吗", "reject", "zh", "characters"), "zh")
    assert ids == [3, 4, 2, 5]
    assert owners.tolist() == [0, 1, -1, 2]


def test_romanised_words_are_found(tmp_path: Path) -> None:
    pytest.importorskip("uroman")
    vocab = {"<blank>": 0, "<pad>": 1, **{chr(97 + i): 2 + i for i in range(26)}, "'": 28}
    aligner = CtcAligner(AlignConfig("ctc", checkpoint(tmp_path, vocab), romanise=True))
    said = [vocab[ch] for ch in "privet"]
    found = planted(aligner, [0, *said, 0, 0, *(vocab[ch] for ch in "mir"), 0], 29, "Привет, мир!", "ru")
    assert isinstance(found, AlignedWords)
    np.testing.assert_allclose(found.seconds, np.array([[1, 7], [9, 12]]) * 0.02)
    words = Vocabulary(str(tmp_path), 1, romanise=True)
    assert words.ids_of("你", "zh") == [vocab[ch] for ch in "ni"]
    assert words.ids_of("नेपाल", "hi") == [vocab[ch] for ch in "nepaal"]
    with pytest.raises(Rejection, match="has no 'п'"):  # the control
        Vocabulary(str(tmp_path), 1, romanise=False).ids_of("привет", "ru")
    plain = CtcAligner(AlignConfig("ctc", str(tmp_path)))
    assert plain.fingerprint != aligner.fingerprint


def test_a_vocabulary_of_several_languages_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, {"<pad>": 0, "a": 1})
    (tmp_path / "vocab.json").write_text(json.dumps({"fra": {"a": 0}, "deu": {"a": 0}}))
    with pytest.raises(UserError, match="a vocabulary for each of several languages"):
        CtcAligner(AlignConfig("ctc", str(tmp_path)))
    (tmp_path / "vocab.json").write_text("[]")
    with pytest.raises(UserError, match="has no vocab.json that can be read"):
        CtcAligner(AlignConfig("ctc", str(tmp_path)))


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Whisper of 32 dimensions whose tokenizer has a token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("whisper")
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|startoftranscript|>", "<|fr|>", "<|zh|>", "<|transcribe|>", "<|notimestamps|>"]
    vocab = {name: i for i, name in enumerate(names)}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(special)
    raw.save(str(folder / "tokenizer.json"))
    end = {"unk_token": special[0], "bos_token": special[0], "eos_token": special[0], "pad_token": special[0]}
    transformers.WhisperTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **end).save_pretrained(folder)
    first, size = len(names), 32
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=len(names) + len(special), d_model=size, encoder_layers=1, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=size, decoder_ffn_dim=size,
        bos_token_id=first, eos_token_id=first, pad_token_id=first, decoder_start_token_id=first + 1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    transformers.WhisperForConditionalGeneration(config).save_pretrained(folder)
    options = {
        "decoder_start_token_id": first + 1, "eos_token_id": first, "pad_token_id": first, "is_multilingual": True,
        "no_timestamps_token_id": first + 5, "alignment_heads": [[0, 1], [1, 0]],
        "lang_to_id": {"<|fr|>": first + 2, "<|zh|>": first + 3}, "task_to_id": {"transcribe": first + 4},
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(options))
    return folder


def piece_of(text: str, language: str, seconds: float) -> Piece:
    samples = np.random.default_rng(len(text)).normal(0, 0.1, int(seconds * 16000)).astype(np.float32)
    return Piece(samples, normalise(text, "keep", language, "characters"), language, Entry("p", "a.wav", text))


def test_whisper_gives_each_word_a_time(whisper: Path) -> None:
    """Random weights place nothing, but shapes, order, batches and refusals are the real ones."""
    aligner = make_aligner(AlignConfig("whisper", str(whisper)))
    pieces = [
        piece_of("Où vas-tu, l'été ?", "fr", 2.0), piece_of("我们都是。", "zh", 1.5), piece_of("hello", "de", 1.0),
        piece_of("a" * 60, "fr", 1.0), piece_of("trop long", "fr", 31.0),
    ]  # fmt: skip
    french, chinese, *refused = aligner.align_batch(pieces)
    assert [str(one).partition(":")[0] for one in refused] == ["language", "words_too_fast", "too_long"]
    for found, piece in ((french, pieces[0]), (chinese, pieces[1])):
        assert isinstance(found, AlignedWords)
        assert len(found.seconds) == len(piece.words)
        assert (np.diff(found.seconds.ravel()) >= 0).all()
        assert found.seconds[-1, 1] <= piece.seconds
        assert (found.scores < 0).all()
        alone = aligner.align_batch([piece])[0]  # nothing depends on the batch
        assert isinstance(alone, AlignedWords)
        np.testing.assert_allclose(alone.seconds, found.seconds)
        np.testing.assert_allclose(alone.scores, found.scores, atol=1e-4)


def test_scores_are_those_of_the_model(whisper: Path) -> None:
    """Of the tokens behind the prompt, each by what stands before it."""
    aligner = WhisperAligner(AlignConfig("whisper", str(whisper)))
    piece = piece_of("un deux", "fr", 1.0)
    found = aligner.align_batch([piece])[0]
    assert isinstance(found, AlignedWords)
    prompt, tokens = aligner._tokens(piece)
    ids = torch.tensor([[*prompt, *tokens[0], *tokens[1]]])
    mel = aligner._mel([piece.samples], sampling_rate=16000, return_tensors="pt").input_features
    with torch.inference_mode():
        likely = torch.log_softmax(aligner._model(input_features=mel, decoder_input_ids=ids).logits, -1)[0]
    own = [float(likely[at - 1, ids[0, at]]) for at in range(len(prompt), ids.shape[1])]
    first = len(tokens[0])
    np.testing.assert_allclose(found.scores, [np.mean(own[:first]), np.mean(own[first:])], atol=1e-4)


def test_the_path_through_attention_is_the_planted_one() -> None:
    rng = np.random.default_rng(0)
    edges = np.array([0, 12, 30, 45, 60, 90])
    attention = rng.uniform(0, 0.2, (3, 5, 90)).astype(np.float32)
    for row, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
        attention[:2, row, begin:end] += 1  # the third head says nothing
    assert np.abs(token_edges(attention) - edges).max() <= 1
    assert np.abs(token_edges(attention[:, ::-1].copy()) - edges).max() > 5  # the control
    sound = np.concatenate([np.zeros(1600), rng.normal(0, 0.1, 3200), np.zeros(1600)]).astype(np.float32)
    assert trimmed(frame_power(sound), 0.0, 0.4) == pytest.approx((0.1, 0.3))
    assert trimmed(frame_power(sound), 0.0, 0.05) == (0.0, 0.05)  # all of it is quiet


def test_a_whisper_that_does_not_say_its_heads_is_refused(whisper: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(whisper, folder)
    options = json.loads((folder / "generation_config.json").read_text())
    del options["alignment_heads"]
    (folder / "generation_config.json").write_text(json.dumps(options))
    with pytest.raises(UserError, match="has no alignment_heads"):
        make_aligner(AlignConfig("whisper", str(folder)))
    with pytest.raises(UserError, match="cannot be loaded as a whole Whisper"):
        make_aligner(AlignConfig("whisper", str(tmp_path / "nothing")))
