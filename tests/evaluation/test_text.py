"""Held-out text beside the language model of a warm start: its loss is that of the real class of transformers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from megatron_lst.documents.schema import Document
from megatron_lst.errors import UserError
from megatron_lst.evaluation.text import Original, text_loss, text_windows
from megatron_lst.inference import LatentSpeechTextModel
from tests.support.checkpoints import LLAMA3, V, fitted, saved, started


def document(name: str, count: int, spoken: bool = False) -> Document:
    rng = np.random.default_rng(count)
    speech = {"speech_ids": rng.integers(0, 9, 6).astype(np.int16)} if spoken else {}
    ids = rng.integers(3, 24, count).astype(np.int32)
    return Document(id=name, source="s", text="", token_ids=ids, license="CC0", **speech)


DOCUMENTS = [document("a", 20), document("b", 7, spoken=True), document("c", 9), document("d", 30)]


def test_windows_are_of_documents_without_speech_in_order() -> None:
    found = text_windows(DOCUMENTS, units=13, pieces=35)
    assert [len(w) for w in found] == [12, 8, 9, 6]
    np.testing.assert_array_equal(np.concatenate(found[:2]), DOCUMENTS[0].token_ids)
    np.testing.assert_array_equal(found[3], DOCUMENTS[3].token_ids[:6])
    assert text_windows(DOCUMENTS[1:2], 13, 35) == []
    assert sum(map(len, text_windows(DOCUMENTS, 13, 1000))) == 59


@pytest.mark.parametrize(("kind", "changes"), [("llama", {"head_dim": 8, "rope_scaling": LLAMA3}), ("qwen2", {})])
def test_the_originals_loss_is_that_of_transformers(tmp_path: Path, kind: str, changes: dict[str, object]) -> None:
    theirs = saved(tmp_path / "theirs", kind, **changes)
    windows = text_windows(DOCUMENTS, 13, 1000)
    total, pieces = 0.0, 0
    for window in windows:
        ids = torch.tensor([[V.bos, *window.tolist()]])
        with torch.no_grad():
            total += float(theirs(ids, labels=ids).loss) * len(window)
        pieces += len(window)
    found = Original(tmp_path / "theirs", V, 13).loss(windows)
    assert found.pieces == pieces
    assert found.loss == pytest.approx(total / pieces, rel=1e-6)
    assert found.perplexity == pytest.approx(np.exp(total / pieces), rel=1e-5)
    # The LST that starts from it gives a share to speech and markers; over the text ids alone it is the original.
    config = fitted(tmp_path / "theirs")
    weights = started(tmp_path / "theirs", config)[1]
    model = LatentSpeechTextModel.from_weights(config, V, weights, 3)
    with_speech = text_loss(windows, model.score, V, 13)
    assert with_speech.loss > found.loss + 1e-3
    spread = torch.cat([logs_of_text(model, window) for window in windows])
    assert float(-spread.mean()) == pytest.approx(found.loss, rel=1e-5)


def logs_of_text(model: LatentSpeechTextModel, window: np.ndarray) -> torch.Tensor:
    """log p of each piece over the text ids alone."""
    from megatron_lst.inference.cache import Cache

    new = model.counters(1)[0].add([V.bos, *window.tolist()])
    outputs = model.advance([new], Cache(model.config, 1, one_call=True))
    logs = outputs.logits(np.arange(len(window)))[:, :24].log_softmax(-1)
    return logs.gather(1, torch.from_numpy(window.astype(np.int64))[:, None])[:, 0]


def test_another_vocabulary_and_another_family_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "theirs")
    with pytest.raises(UserError, match="24 text ids, vocabulary.text_size=25: it is another model's tokenizer"):
        Original(tmp_path / "theirs", replace(V, text_size=25), 13)
    saved(tmp_path / "other", "gemma2", head_dim=4)
    with pytest.raises(UserError, match="'gemma2' is not taken"):
        Original(tmp_path / "other", V, 13)
