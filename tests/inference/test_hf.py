"""transformers: round trip through Auto classes, generation, and warm starts from tiny local checkpoints."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import megatron_lst.hf
from megatron_lst.config.schema import Config, ModelConfig, PatchingConfig
from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.inference import LatentSpeechTextModel, write_export
from megatron_lst.inference.model import Cache
from megatron_lst.inference.warm_start import warm_start
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


def llama(tmp_path: Path, **changes: object) -> tuple[Path, LlamaForCausalLM]:
    torch.manual_seed(0)
    config = LlamaConfig(**{
        "vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, **changes,
    })  # fmt: skip
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama", model


@pytest.mark.parametrize("options", [{"text_path": "direct"}, {"kind": "baseline"}])
@pytest.mark.parametrize("tied", [False, True])
def test_warm_started_text_logits_equal_the_language_models(
    tmp_path: Path, options: dict[str, object], tied: bool
) -> None:
    folder, theirs = llama(tmp_path, tie_word_embeddings=tied)
    config = replace(TINY, **options)  # type: ignore[arg-type]
    weights = dict(ReferenceModel(config, V).state_dict())
    result = warm_start(folder, weights, config, V)
    size = 1 if config.kind == "baseline" else 3
    model = LatentSpeechTextModel.from_weights(config, V, {n: w.double() for n, w in weights.items()}, size)
    tokens = [1, 5, 9, 3, 20, 11, 5]
    outputs = model.advance([model.counters(1)[0].add(tokens)], Cache(config, 1, one_call=True))
    # Their norms and RoPE run in float32 whatever the weights' dtype.
    with torch.no_grad():
        expected = theirs.double()(torch.tensor([tokens])).logits[0]
    torch.testing.assert_close(outputs.logits(np.arange(len(tokens)))[:, :24], expected, rtol=1e-4, atol=5e-6)
    assert all(not n.startswith("global_transformer.") for n in result.fresh)
    assert not result.unused


def test_the_patch_path_takes_the_layers_and_reports_the_rest(tmp_path: Path) -> None:
    folder, theirs = llama(tmp_path)
    weights = dict(ReferenceModel(TINY, V).state_dict())
    before = weights["encoder.pool_proj.weight"].clone()
    result = warm_start(folder, weights, TINY, V)
    assert torch.equal(
        weights["global_transformer.layers.1.mlp.up_proj.weight"], theirs.model.layers[1].mlp.up_proj.weight
    )
    assert torch.equal(weights["encoder.pool_proj.weight"], before)
    assert set(result.unused) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    assert "fresh: decoder.layers.*.cross_attention.q_proj.weight" in result.report()


def test_refuses_other_architectures_and_incomplete_checkpoints(tmp_path: Path) -> None:
    folder, _ = llama(tmp_path, rope_theta=500.0, num_hidden_layers=3)
    with pytest.raises(UserError, match=r"(?s)model.layers: 2 here, 3 there.*model.rope_theta: 10000.0 here, 500.0"):
        warm_start(folder, dict(ReferenceModel(TINY, V).state_dict()), TINY, V)
    with pytest.raises(UserError, match=r"no config\.json"):
        warm_start(tmp_path, {}, TINY, V)
    folder, _ = llama(tmp_path)
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(DamagedDataError, match=r"model\.safetensors"):
        warm_start(folder, dict(ReferenceModel(TINY, V).state_dict()), TINY, V)
