"""transformers: round trip through Auto classes, and generation."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
from transformers import AutoModelForCausalLM

import megatron_lst.hf
from megatron_lst.config.schema import Config, ModelConfig, PatchingConfig
from megatron_lst.errors import UserError
from megatron_lst.inference import LatentSpeechTextModel, write_export
from megatron_lst.inference.cache import Cache
from megatron_lst.reference import ReferenceModel
from megatron_lst.vocabulary import Vocabulary

V = Vocabulary(text_size=24, speech_size=9, multiple=8)
TINY = ModelConfig(
    hidden=16, layers=2, heads=4, kv_heads=2, ffn=24, local_hidden=8, local_heads=2, local_ffn=12, decoder_layers=1,
    init_std=0.3, rope_theta=10000.0, norm_eps=1e-6,
)  # fmt: skip
PROMPTS = [[V.bos, V.speech_marker, 25, 26, 27, 28, 29], [V.bos, 5, 6]]


def exported(tmp_path: Path, kind: str = "lst") -> tuple[Path, ReferenceModel]:
    strategy = "none" if kind == "baseline" else "static"
    config = Config(
        vocabulary=V, model=replace(TINY, kind=kind), patching=PatchingConfig(strategy=strategy, size=3)  # type: ignore[arg-type]
    )  # fmt: skip
    oracle = ReferenceModel(config.model, V, seed=3)
    return write_export(tmp_path / kind, oracle.state_dict(), config), oracle


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([p + [V.pad] * (longest - len(p)) for p in PROMPTS])
    return ids, (ids != V.pad).long()


def test_auto_model_reads_shards(tmp_path: Path) -> None:
    whole, oracle = exported(tmp_path)
    config = Config(vocabulary=V, model=TINY, patching=PatchingConfig(strategy="static", size=3))
    folder = write_export(tmp_path / "shards", oracle.state_dict(), config, shard_size=4000)
    assert len(list(folder.glob("*.safetensors"))) > 2
    ids, mask = batch()
    first, second = (
        AutoModelForCausalLM.from_pretrained(f)(input_ids=ids, attention_mask=mask) for f in (whole, folder)
    )
    assert torch.equal(first.logits, second.logits)


@pytest.mark.parametrize("kind", ["lst", "baseline"])
def test_auto_model_gives_the_models_logits_and_generates(tmp_path: Path, kind: str) -> None:
    folder, oracle = exported(tmp_path, kind)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert isinstance(model, megatron_lst.hf.LatentSpeechTextForCausalLM)
    own = LatentSpeechTextModel.from_weights(
        oracle.config, V, oracle.state_dict(), 1 if kind == "baseline" else 3
    )  # fmt: skip
    ids, mask = batch()
    labels = ids.masked_fill(mask == 0, -100)
    result = model(input_ids=ids, attention_mask=mask, labels=labels)
    parts = [c.add(p) for c, p in zip(own.counters(2), PROMPTS, strict=True)]
    expected = own.advance(parts, Cache(own.config, 2, one_call=True))
    torch.testing.assert_close(result.logits[mask.bool()], expected.logits(np.arange(expected.count)))
    assert (result.logits[mask == 0] == 0).all()
    flat = result.logits[:, :-1].flatten(0, 1)
    wanted = torch.nn.functional.cross_entropy(flat, labels[:, 1:].flatten())
    assert result.loss.item() == pytest.approx(wanted.item())
    out = model.generate(ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6)
    assert out.shape == (2, ids.shape[1] + 6)
    assert torch.equal(out[:, : ids.shape[1]], ids)
    assert not torch.equal(
        out, model.generate(ids, mask, max_new_tokens=6, min_new_tokens=6, do_sample=True, temperature=9.0)
    )
    with pytest.raises(UserError, match="no option num_beams"):
        model.generate(ids, num_beams=4)


def test_saved_by_transformers_loads_again(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float64)
    for name, value in model.state_dict().items():
        assert torch.equal(value.double(), again.state_dict()[name])


def test_imports_neither_megatron_nor_streaming(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path)
    code = (
        "import sys, megatron_lst.hf; from transformers import AutoModelForCausalLM; "
        f"AutoModelForCausalLM.from_pretrained({str(folder)!r}); "
        "bad = {'megatron', 'streaming', 'deepspeed'} & {m.split('.')[0] for m in sys.modules}; assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
