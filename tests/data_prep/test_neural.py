"""HuBERT units and CTC alignment, end to end, with tiny weights made here: the real loading and running code."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lst_prep.align import Piece
from lst_prep.align.ctc import CtcAligner, _batches, _Lattice, _states_of
from lst_prep.align.viterbi import ctc_align, torchaudio_align
from lst_prep.config import AlignConfig, JobConfig, PrepConfig, UnitsConfig
from lst_prep.devices import choose_device, choose_dtype
from lst_prep.pieces import equal_length_batches, quiet_cuts
from lst_prep.pipeline import run
from lst_prep.rejection import Rejection
from lst_prep.transcript import normalise
from lst_prep.units import Codebook
from lst_prep.units.codebook import agreement
from lst_prep.units.hubert import HubertExtractor
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import UserError

transformers = pytest.importorskip("transformers")

CORPUS = Path(__file__).parents[2] / "data_prep" / "corpus"
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
KERNELS = (10, 3, 3, 3, 3, 2, 2)


@pytest.fixture(scope="module")
def hubert(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("hubert")
    strides = (5, 2, 2, 2, 2, 2, 4)  # 640 samples a frame
    config = transformers.HubertConfig(**SMALL, conv_kernel=KERNELS, conv_stride=strides)
    transformers.HubertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def ctc(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ctc")
    vocab = {"<pad>": 0, "|": 1, "'": 2, **{chr(65 + i): 3 + i for i in range(26)}}
    config = transformers.Wav2Vec2Config(
        **SMALL, conv_kernel=KERNELS, conv_stride=(5, 2, 2, 2, 2, 2, 2), vocab_size=len(vocab), pad_token_id=0
    )
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    return str(folder)


def waves(*seconds: float) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, int(s * 16000)).astype(np.float32) for s in seconds]


def test_hubert_frames_and_batches(hubert: str) -> None:
    extractor = HubertExtractor(UnitsConfig("hubert", hubert, layer=2))
    pieces = waves(1.0, 2.0, 1.0, 0.03, 1.0)
    together = extractor.features(pieces)
    assert [len(f) for f in together] == [25, 50, 25, 0, 25]
    for piece, features in zip(pieces, together, strict=True):
        np.testing.assert_allclose(extractor.features([piece])[0], features, atol=1e-5)


def test_hubert_is_transformers_own_hidden_state(hubert: str) -> None:
    piece = waves(1.0)[0]
    model = transformers.HubertModel.from_pretrained(hubert).eval()
    padded = torch.nn.functional.pad(torch.from_numpy(piece)[None], (40, 40))
    with torch.no_grad():
        expected = model(padded, output_hidden_states=True).hidden_states[2][0].numpy()
    assert len(expected) == 25
    found = HubertExtractor(UnitsConfig("hubert", hubert, layer=2)).features([piece])[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_zero_padding_would_change_units(hubert: str) -> None:
    """Why batches are of equal length."""
    extractor = HubertExtractor(UnitsConfig("hubert", hubert, layer=2))
    piece = waves(1.0)[0]
    alone = extractor.features([piece])[0]
    padded = extractor.features([np.concatenate([piece, np.zeros(16000, np.float32)])])[0][:25]
    assert np.abs(alone - padded).max() > 1e-2


def test_long_audio_is_cut_in_quiet_places(hubert: str) -> None:
    piece = waves(7.0)[0]
    piece[2 * 16000 : 2 * 16000 + 4000] = 0
    cuts = quiet_cuts(piece, 3.0, 640)
    assert cuts[0] == 0
    assert cuts[-1] == len(piece)
    assert 2.0 <= cuts[1] / 16000 <= 2.25
    assert max(np.diff(cuts)) <= 3 * 16000
    assert all(cut % 640 == 0 for cut in cuts[:-1])
    extractor = HubertExtractor(UnitsConfig("hubert", hubert, layer=1, piece_seconds=3.0))
    assert len(extractor.features([piece])[0]) == 175


def test_bf16_agreement_is_measured(hubert: str) -> None:
    """Against fp32 weights, not against bf16 ones cast back; random units would agree on a tenth."""
    pieces = waves(2.0, 3.0)
    reference = HubertExtractor(UnitsConfig("hubert", hubert, layer=2))
    exact = reference.features(pieces)
    codebook = Codebook(np.concatenate(exact)[::12], "hubert", reference.fingerprint)
    lower = HubertExtractor(UnitsConfig("hubert", hubert, layer=2, precision="bf16"))
    assert reference.exact and not lower.exact
    mine = lower.features(pieces)
    alike = sum((codebook.encode(a) == codebook.encode(b)).sum() for a, b in zip(mine, exact, strict=True))
    assert agreement(lower, codebook, pieces) == (alike, 125)
    assert 60 < alike < 125  # and bf16 is not fp32: some units differ
    assert (codebook.encode(mine[0]) == codebook.encode(exact[1][:50])).sum() < 25
    assert agreement(reference, codebook, pieces) == (125, 125)


def test_what_is_no_25_hz_hubert_is_refused(hubert: str, ctc: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        HubertExtractor(UnitsConfig("hubert", str(tmp_path)))
    with pytest.raises(UserError, match=r"hidden layers 0\.\.3"):
        HubertExtractor(UnitsConfig("hubert", hubert, layer=11))
    config = transformers.HubertConfig(**SMALL, conv_kernel=KERNELS, conv_stride=(5, 2, 2, 2, 2, 2, 2))
    transformers.HubertModel(config).save_pretrained(tmp_path / "50hz")
    with pytest.raises(UserError, match="50 Hz"):
        HubertExtractor(UnitsConfig("hubert", str(tmp_path / "50hz"), layer=1))
    with pytest.raises(UserError, match="no CUDA"):
        choose_device("cuda") if not torch.cuda.is_available() else (_ for _ in ()).throw(UserError("no CUDA"))
    with pytest.raises(UserError, match="precision"):
        choose_dtype("fp8", torch.device("cpu"))


def test_batches_have_one_length_and_keep_the_budget() -> None:
    lengths = [5, 7, 5, 5, 7, 9]
    batches = list(equal_length_batches(lengths, 10))
    assert sorted(itertools.chain(*batches)) == list(range(6))
    assert all(len({lengths[i] for i in batch}) == 1 for batch in batches)
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= 10 for batch in batches)


def brute_force(log_probs: np.ndarray, target: list[int]) -> float:
    """Best CTC path by trying every label sequence."""
    best = -np.inf
    for labels in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        collapsed = [k for k, _ in itertools.groupby(labels) if k != 0]
        if collapsed == target:
            best = max(best, sum(log_probs[t, label] for t, label in enumerate(labels)))
    return best


def test_viterbi_is_exact_in_batches_of_unequal_lengths() -> None:
    rng = np.random.default_rng(0)
    cases = [(6, [1, 2]), (7, [1, 1]), (5, [2, 1, 2]), (4, [1]), (3, [1, 1]), (2, [1, 1])]
    emissions = torch.full((len(cases), 7, 3), -5.0)
    targets = torch.ones(len(cases), 3, dtype=torch.long)
    for row, (frames, target) in enumerate(cases):
        values = torch.log_softmax(torch.from_numpy(rng.normal(0, 2, (frames, 3))), -1).float()
        emissions[row, :frames] = values
        targets[row, : len(target)] = torch.tensor(target)
    states, scores = ctc_align(
        emissions, targets, torch.tensor([f for f, _ in cases]), torch.tensor([len(t) for _, t in cases])
    )
    for row, (frames, target) in enumerate(cases):
        expected = brute_force(emissions[row, :frames].numpy(), target)
        if np.isinf(expected):  # two equal letters need a blank between them
            assert torch.isinf(scores[row])
            continue
        assert float(scores[row]) == pytest.approx(expected, abs=1e-4)
        path = states[row, :frames].tolist()
        labels = [0 if s % 2 == 0 else target[s // 2] for s in path]
        assert sum(float(emissions[row, t, label]) for t, label in enumerate(labels)) == pytest.approx(
            expected, abs=1e-4
        )
        assert (states[row, frames:] == -1).all()
        assert _states_of(np.array(labels), 0).tolist() == path


def test_ctc_finds_planted_letters(ctc: str) -> None:
    """With emissions that say where each letter is, words and letters get exactly those times."""
    aligner = CtcAligner(AlignConfig("ctc", ctc))
    plan = "HHE..LL.LO||..W.OOR.LLD..."
    ids = {".": 0, "|": 1, **{chr(65 + i): 3 + i for i in range(26)}}
    log_probs = np.full((len(plan), 29), -20.0, np.float32)
    for t, ch in enumerate(plan):
        log_probs[t, ids[ch]] = -0.1
    samples = np.zeros(len(plan) * 320, np.float32)
    pieces = [Piece(samples, normalise(text)) for text in ("Hello, world!", "one two three four five six seven eight")]
    aligned, too_fast = aligner.align_emissions(pieces, [log_probs] * 2)
    assert not isinstance(aligned, Rejection)
    np.testing.assert_allclose(aligned.seconds, np.array([[0, 10], [14, 23]]) * 0.02)
    np.testing.assert_allclose(aligned.letters, np.array([2, 3, 7, 9, 10, 15, 18, 19, 22, 23]) * 0.02)
    assert aligned.letter_counts.tolist() == [5, 5]
    assert aligned.scores.tolist() == pytest.approx([-0.1, -0.1])
    assert str(too_fast).startswith("words_too_fast")


def aligned_pieces(count: int) -> list[Piece]:
    """Noise of three lengths with transcripts of several; two pieces of each length share a batch."""
    text = "and he said unto them go ye into all the world".split()
    lengths = [1.0, 2.5, 1.0, 1.7, 2.5, 1.7]
    return [Piece(wave, normalise(" ".join(text[: 1 + i % 5]))) for i, wave in enumerate(waves(*lengths[:count]))]


def test_a_batch_is_aligned_as_each_piece_alone(ctc: str) -> None:
    aligner = CtcAligner(AlignConfig("ctc", ctc, piece_seconds=1.0))
    pieces = [
        *aligned_pieces(6),
        Piece(waves(0.1)[0], normalise("far too many letters")),
        Piece(waves(0.001)[0], normalise("a")),
    ]
    together = aligner.align_batch(pieces)
    assert [isinstance(result, Rejection) for result in together] == [False] * 6 + [True] * 2
    for (samples, words, *_), result in zip(pieces[:6], together, strict=False):
        alone = aligner.align(samples, words)
        assert not isinstance(result, Rejection)
        np.testing.assert_allclose(result.seconds, alone.seconds)
        np.testing.assert_allclose(result.letters, alone.letters)
        np.testing.assert_allclose(result.scores, alone.scores, atol=1e-4)
    other = together[1]
    assert not isinstance(other, Rejection)
    assert other.seconds[-1, 1] > 1.0  # negative control: the second piece is not the first one's length


def test_batches_see_every_lattice_once_and_keep_the_budget() -> None:
    lattices = [_Lattice(i, np.zeros((40 + i % 7, 3)), [1] * (1 + i % 4), np.zeros(1 + i % 4)) for i in range(30)]
    batches = list(_batches(lattices, most_cells=2000))
    assert sorted(one.piece for batch in batches for one in batch) == list(range(30))
    for batch in batches:
        steps, letters = max(len(one.log_probs) for one in batch), max(len(one.targets) for one in batch)
        assert len(batch) * steps * (2 * letters + 1) <= 2000
    assert len(batches) < 15


def test_a_transcript_that_would_fill_memory_is_rejected(ctc: str) -> None:
    aligner = CtcAligner(AlignConfig("ctc", ctc), most_cells=500)
    with pytest.raises(Rejection, match="too_long.*times of the recording's segments"):
        aligner.align(*aligned_pieces(1)[0][:1], normalise("hello world"))


def test_torchaudio_gives_the_same_paths(ctc: str) -> None:
    if torchaudio_align() is None:
        pytest.skip("torchaudio does not import here (it needs a CUDA build of torch)")
    aligner, ours = CtcAligner(AlignConfig("ctc", ctc)), CtcAligner(AlignConfig("ctc", ctc))
    assert aligner._native is not None
    ours._native = None
    for (samples, words, *_), mine in zip(aligned_pieces(6), ours.align_batch(aligned_pieces(6)), strict=True):
        theirs = aligner.align(samples, words)
        assert not isinstance(mine, Rejection)
        np.testing.assert_allclose(mine.seconds, theirs.seconds)
        np.testing.assert_allclose(mine.letters, theirs.letters)


def test_hubert_and_ctc_end_to_end(hubert: str, ctc: str, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text().splitlines()]
    chosen = [{**e, "audio": str(CORPUS / e["audio"])} for e in lines if e["source"] == "librivox"]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(e) + "\n" for e in chosen))
    config = PrepConfig(
        manifests=(str(tmp_path / "m.jsonl"),),
        out=str(tmp_path / "out"),
        units=UnitsConfig("hubert", hubert, layer=2, codebook_size=20, precision="bf16"),
        align=AlignConfig("ctc", ctc),
        jobs=JobConfig(workers=1),
    )
    summary = run(config, quiet=True)
    assert summary["rejected"] == {}
    alike, compared = summary["units_like_fp32"]
    assert 0.5 * compared < alike < compared
    written = Codebook.load(tmp_path / "out" / "codebook.safetensors").settings
    assert written == {"layer": 2, "padding": 40, "piece_seconds": 30.0}
    assert f"{alike / compared:.1%} of {compared} units" in (tmp_path / "out" / "report.md").read_text()
    shards = ShardSet.open(tmp_path / "out" / "speech")
    assert shards.codec is not None
    assert shards.codec.name == "hubert"
    for document in shards:
        document.check(20, 32000)
        assert document.piece_frames.shape == (len(document.token_ids), 2)
        assert (document.piece_frames[:, 0] <= document.piece_frames[:, 1]).all()
        for (first, last), (begin, end) in zip(document.word_tokens, document.word_frames, strict=True):
            inside = document.piece_frames[first:last]
            assert inside[0, 0] == begin
            assert inside[-1, 1] == end
            assert (inside[1:, 0] == inside[:-1, 1]).all()
    again = replace(
        config,
        out=str(tmp_path / "other"),
        units=replace(config.units, codebook=str(tmp_path / "out" / "codebook.safetensors"), layer=1),
    )
    with pytest.raises(
        UserError, match=r"fitted on hubert features \(.*layer 2, .*made with hubert \(.*layer 1, padding 40"
    ):
        run(again, quiet=True)
