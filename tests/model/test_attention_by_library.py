"""The global attention by a library: the same step as by the kernel, and what is refused by name."""

import pytest
import torch

pytest.importorskip("torch.nn.attention.varlen")
from torch.nn.attention import varlen

from megatron_lst.errors import UserError
from megatron_lst.model.layers import VarlenCoreAttention, global_attention
from megatron_lst.parallel import accelerators
from tests.support.single import engine_of
from tests.support.toy import toy_config, toy_rows
from tests.support.varlen import stand_in


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_step_is_that_of_the_kernel(recompute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The documents of packed, padded rows say what the mask says. On a CPU both are the reference, so bits agree."""
    changes = {"training__precision": "bf16", "training__recompute": recompute, "model__kv_heads": 2}
    seen = stand_in(monkeypatch)
    monkeypatch.setattr(accelerators, "probe", lambda purpose, _: print if purpose == "attention" else None)
    found = []
    for attention in ("lst_kernels", "varlen_attn"):
        config = toy_config(engine__attention=attention, **changes)
        rows = toy_rows(config, config.training.global_batch)
        with engine_of(config) as engine:
            scores = engine.score(rows[:2])
            steps = [engine.step(rows, lr=1e-3) for _ in range(2)]
        found.append(([(step.loss, step.grad_norm) for step in steps], [score.tolist() for score in scores]))
        assert bool(seen.forward) == (attention == "varlen_attn")
    assert found[0] == found[1]
    assert seen.backward, "gradients go through it"
    assert set(seen.backward) == {(2, False)}
    assert set(seen.forward) == {(0, True)}


def test_what_varlen_attn_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerators.probe.cache_clear()
    with pytest.raises(UserError, match=r"=varlen_attn: torch\.nn\.attention\.varlen\.varlen_attn cannot be"):
        accelerators.choose("attention", "varlen_attn")
    accelerators.probe.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(accelerators, "gpu_is_usable", lambda: True)
        assert global_attention("varlen_attn", torch.bfloat16, 64) is VarlenCoreAttention
        with pytest.raises(UserError, match=r"engine\.attention=varlen_attn needs training\.precision=bf16"):
            global_attention("varlen_attn", torch.float32, 64)
        accelerators.probe.cache_clear()
        patch.delattr(varlen, "varlen_attn")
        with pytest.raises(UserError, match=r"part of PyTorch 2\.10 and later"):
            global_attention("varlen_attn", torch.bfloat16, 64)
    accelerators.probe.cache_clear()
