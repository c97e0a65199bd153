"""What the trainer relies on: learning rates, decay, skipped steps, scores in any number, weights in and out."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_lst.engines import build_engine
from megatron_lst.engines.microbatches import balanced_micro_batches
from megatron_lst.errors import UserError
from megatron_lst.model.sharding import ShardSpec, shard_spec
from megatron_lst.parallel import accelerators
from megatron_lst.weights import canonical_shapes
from tests.support.single import engine_of
from tests.support.toy import toy_config, toy_rows


def test_a_step_with_learning_rate_zero_changes_nothing_and_descent_descends() -> None:
    config = toy_config()
    rows = toy_rows(config, 8)
    with engine_of(config) as engine:
        before = engine.export_weights()
        first = engine.step(rows, lr=0.0)
        after = engine.export_weights()
        assert all(torch.equal(before[name], after[name]) for name in before)
        losses = [engine.step(rows, lr=3e-3).loss for _ in range(6)]
    assert losses[0] == first.loss
    assert losses[-1] < losses[0] - 0.2


def test_the_first_update_is_adamw_with_decay_on_matrices_alone() -> None:
    """Against torch's AdamW on the oracle; a norm decays nowhere."""
    from megatron_lst.reference import ReferenceModel

    config = toy_config(training__weight_decay=0.5, training__clip=0.05)
    rows = toy_rows(config, 8)
    with engine_of(config) as engine:
        oracle = ReferenceModel(config.model, config.vocabulary).double()
        oracle.load_state_dict(engine.export_weights())
        total, targets = torch.zeros((), dtype=torch.float64), 0
        for row in rows:
            labels = torch.as_tensor(row.labels).long()
            total = total + torch.nn.functional.cross_entropy(oracle(row), labels, ignore_index=-100, reduction="sum")
            targets += int((labels >= 0).sum())
        (total / targets).backward()
        torch.nn.utils.clip_grad_norm_(oracle.parameters(), config.training.clip)
        matrices = [p for p in oracle.parameters() if p.dim() > 1]
        norms = [p for p in oracle.parameters() if p.dim() == 1]
        adam = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.5}, {"params": norms, "weight_decay": 0.0}],
            lr=1e-2, betas=(0.9, 0.95), eps=1e-8,
        )  # fmt: skip
        adam.step()
        engine.step(rows, lr=1e-2)
        found = engine.export_weights()
    for name, parameter in oracle.named_parameters():
        # Adam's first update is lr * sign(gradient): where a gradient is all but 0, its sign is noise.
        close = (found[name].double() - parameter.detach()).abs() < 1e-4
        assert close.float().mean() > 0.995, name


def test_gradients_are_clipped_together_and_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU without Transformer Engine and apex Megatron-core's own functions read the norm of every gradient."""
    from megatron.core import utils
    from megatron.core.optimizer import clip_grads

    config = toy_config(training__clip=0.05)
    rows = toy_rows(config, 8)

    def stepped() -> tuple[float, dict[str, torch.Tensor]]:
        with engine_of(config) as engine:
            norm = engine.step(rows, lr=1e-2).grad_norm
            return norm, engine.export_weights()

    with monkeypatch.context() as patch:
        patch.setattr(clip_grads, "multi_tensor_scale_impl", lambda *given: utils.local_multi_tensor_scale(*given))
        norm, weights = stepped()
    monkeypatch.setattr(clip_grads, "l2_norm_impl", utils.local_multi_tensor_l2_norm)
    monkeypatch.setattr(clip_grads, "multi_tensor_scale_impl", utils.local_multi_tensor_scale)
    found, same = stepped()
    assert clip_grads.l2_norm_impl is not utils.local_multi_tensor_l2_norm
    assert found == pytest.approx(norm, rel=1e-6)
    assert norm > config.training.clip, "something was clipped"
    for name in weights:
        torch.testing.assert_close(same[name], weights[name], rtol=0, atol=1e-6)


def test_a_step_that_is_not_finite_is_skipped() -> None:
    config = toy_config()
    rows = toy_rows(config, 8)
    with engine_of(config) as engine:
        weights = engine.export_weights()
        expected = engine.step(rows, lr=1e-3)
        engine.load_weights(weights)
        broken = {**weights, "decoder.norm.weight": torch.full_like(weights["decoder.norm.weight"], float("inf"))}
        engine.load_weights(broken)
        result = engine.step(rows, lr=1e-3)
        assert result.skipped
        assert not np.isfinite(result.loss)
        after = engine.export_weights()
        assert all(torch.equal(after[name], broken[name]) for name in broken)
        engine.load_weights(weights)
        again = engine.step(rows, lr=1e-3)
    assert not again.skipped
    assert again.loss == expected.loss


def test_losses_by_kind_add_up() -> None:
    config = toy_config()
    rows = toy_rows(config, 8)
    vocabulary = config.vocabulary
    labels = np.concatenate([row.labels for row in rows])
    speech = vocabulary.is_speech(labels).sum()
    marker = ((labels == vocabulary.text_marker) | (labels == vocabulary.speech_marker)).sum()
    text = (labels >= 0).sum() - speech - marker
    with engine_of(config) as engine:
        scores = np.concatenate(engine.score(rows))
        result = engine.step(rows, lr=1e-3)
    total = result.loss_speech * speech + result.loss_text * text + result.loss_marker * marker
    assert total / result.targets == pytest.approx(result.loss, rel=1e-9)
    assert -scores[vocabulary.is_speech(labels)].mean() == pytest.approx(result.loss_speech, rel=1e-5)


def test_scores_of_any_number_of_rows_and_units() -> None:
    config = toy_config()
    rows = toy_rows(config, 5)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, units=40))
    mixed = [rows[0], *toy_rows(other, 2, seed=9), *rows[1:]]
    with engine_of(config) as engine:
        alone = [engine.score([row])[0] for row in mixed]
        together = engine.score(mixed)
        before = engine.export_weights()
        engine.score(mixed)
        assert all(torch.equal(before[name], w) for name, w in engine.export_weights().items())
    for one, all_of_them, row in zip(alone, together, mixed, strict=True):
        assert one.dtype == np.float32
        assert len(one) == len(row.tokens)
        np.testing.assert_allclose(one, all_of_them, rtol=1e-5, atol=1e-6)


def test_weights_of_another_model_are_refused_with_every_mismatch() -> None:
    config = toy_config()
    with engine_of(config) as engine:
        weights = engine.export_weights()
        wrong = {**weights, "encoder.pool_proj.weight": torch.zeros(3, 3), "surprise.weight": torch.zeros(1)}
        del wrong["decoder.norm.weight"]
        with pytest.raises(UserError) as refused:
            engine.load_weights(wrong)
    said = str(refused.value)
    assert "encoder.pool_proj.weight: (3, 3) where this model has (64, 32)" in said
    assert "surprise.weight: not of this model" in said
    assert "decoder.norm.weight: missing" in said


@pytest.mark.parametrize(
    "changes", [{}, {"model__kind": "baseline"}, {"model__text_path": "direct", "model__queries": 3}]
)
def test_exported_weights_are_the_initial_ones_under_canonical_names(changes: dict[str, Any]) -> None:
    from megatron_lst.reference import ReferenceModel

    config = toy_config(**changes)
    shapes = canonical_shapes(config)
    oracle = ReferenceModel(config.model, config.vocabulary)
    assert {name: tuple(p.shape) for name, p in oracle.named_parameters()} == shapes
    with engine_of(config) as engine:
        weights = engine.export_weights()
        assert engine.describe()["parameters"] == sum(p.numel() for p in oracle.parameters())
    for name, parameter in oracle.named_parameters():
        assert torch.equal(weights[name], parameter), f"{name}: engine and oracle begin with the same values"


def test_bf16_keeps_fp32_masters(tmp_path: Path) -> None:
    """Updates far below bf16's resolution add up, and survive a checkpoint."""
    config = toy_config(training__precision="bf16")
    rows = toy_rows(config, 8)
    with engine_of(config) as engine:
        assert all(p.dtype == torch.bfloat16 for p in engine.chunks[0].parameters())
        first = engine.step(rows, lr=1e-6).loss
        for _ in range(5):
            engine.step(rows, lr=1e-6)
        engine.save(tmp_path)
        losses = [engine.step(rows, lr=1e-3).loss for _ in range(4)]
    with engine_of(config) as engine:
        engine.load(tmp_path)
        assert [engine.step(rows, lr=1e-3).loss for _ in range(4)] == losses
    assert losses[-1] < first
    with engine_of(toy_config()) as engine:
        assert engine.step(rows, lr=1e-6).loss == pytest.approx(first, rel=5e-3)


def test_saving_and_exporting_before_the_first_step_change_nothing(tmp_path: Path) -> None:
    config = toy_config()
    rows = toy_rows(config, 8)
    losses = []
    for look in (False, True):
        with engine_of(config) as engine:
            if look:
                engine.save(tmp_path)
                engine.export_weights()
            losses.append([engine.step(rows, lr=1e-3).loss for _ in range(3)])
    assert losses[0] == losses[1]


def test_the_same_run_twice_gives_the_same_bits() -> None:
    config = toy_config()
    rows = toy_rows(config, 8)
    curves = []
    for _ in range(2):
        with engine_of(config) as engine:
            curves.append([engine.step(rows, lr=1e-3).loss for _ in range(3)])
    assert curves[0] == curves[1]


def test_micro_batches_are_balanced() -> None:
    rows = toy_rows(toy_config(), 12, seed=1)
    groups = balanced_micro_batches(rows, 3)
    assert sorted(row.index for group in groups for row in group) == list(range(12))
    assert all(len(group) == 3 for group in groups)
    loads = [sum(len(row.tokens) for row in group) for group in groups]
    in_order = [sum(len(row.tokens) for row in rows[i : i + 3]) for i in range(0, 12, 3)]
    assert max(loads) <= max(in_order)
    with pytest.raises(UserError, match="do not make micro-batches"):
        balanced_micro_batches(rows, 5)


def test_a_missing_accelerator_is_an_error_only_when_asked_for() -> None:
    with pytest.raises(UserError, match=r"apex\.optimizers\.FusedAdam cannot be imported"):
        build_engine(toy_config(engine__optimizer="apex"))
    with pytest.raises(UserError, match="unknown; one of auto"):
        accelerators.choose("norm", "fastest")
    assert accelerators.choose("optimizer", "auto") == "torch"
    assert {line.name for line in accelerators.report()} >= {"transformer_engine", "apex", "flash_attn", "varlen_attn"}


@pytest.mark.parametrize("size", [1, 2, 4])
def test_shards_join_to_what_they_were_cut_from(size: int) -> None:
    config = toy_config(model__kv_heads=2)  # with size 4 a key/value group lies on two ranks
    shapes = canonical_shapes(config)
    names = [
        "global_transformer.layers.0.self_attention.linear_qkv.weight",
        "global_transformer.layers.1.mlp.linear_fc1.weight",
        "global_transformer.layers.1.mlp.linear_fc2.weight",
        "decoder.layers.1.block.self_attention.linear_qkv.weight",
        "decoder.layers.1.cross_attention.o_proj.weight",
        "embedding.weight",
        "decoder.norm.weight",
    ]
    for name in names:
        spec = shard_spec(name, config, first_layer=2)
        assert isinstance(spec, ShardSpec)
        full = [torch.randn(shapes[n]) for n in spec.names]
        shards = [spec.cut(full, rank, size) for rank in range(size)]
        joined = spec.join(shards, [shapes[n] for n in spec.names])
        assert all(torch.equal(a, b) for a, b in zip(full, joined, strict=True)), name
        whole = dict(zip(spec.names, full, strict=True))
        for rank, shard in enumerate(shards):
            blocks = spec.blocks([shapes[n] for n in spec.names], rank, size)
            parts = [
                whole[n][rows.start : rows.stop, columns.start : columns.stop] if whole[n].dim() > 1 else whole[n]
                for n, rows, columns in blocks
            ]
            assert torch.equal(torch.cat(parts), shard), f"{name}: blocks are what is cut"
    assert shard_spec(names[0], config, first_layer=2).names[0] == "global_transformer.layers.2.attention.q_proj.weight"
