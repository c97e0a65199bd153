"""What only GPUs do in a step, done on a CPU: gradients added in place, targets and clipping in the fused update."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_lst.config.schema import Config
from megatron_lst.engines.megatron import optimizer
from megatron_lst.engines.megatron.adamw import FusedAdamW
from megatron_lst.engines.megatron.optimizer import Optimizer
from megatron_lst.model import settings
from megatron_lst.parallel import weight_gradients
from tests.support.single import engine_of
from tests.support.toy import toy_config, toy_rows


def curve(config: Config, steps: int = 5) -> list[float]:
    """Losses and gradient norms, and then the sum of the weights' magnitudes."""
    found = []
    with engine_of(config) as engine:
        rows = toy_rows(config, config.training.global_batch)
        for _ in range(steps):
            result = engine.step(rows, lr=3e-3)
            found += [result.loss, result.grad_norm]
        found.append(sum(float(w.double().abs().sum()) for w in engine.export_weights().values()))
    return found


def test_weight_gradients_added_in_place_are_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU products are rounded as autograd's, so nothing may differ; the controls forget one in ten, or norms."""
    from megatron.core.tensor_parallel import layers

    from megatron_lst.model import layers as model_layers

    config = toy_config(engine__loss_chunk=16)  # heads add theirs another way
    want = curve(config)
    calls = 0

    def install(device: torch.device, dtype: torch.dtype) -> bool:
        monkeypatch.setattr(layers, "fused_weight_gradient_mlp_cuda", Products, raising=False)
        monkeypatch.setattr(layers, "_grad_accum_fusion_available", True)
        return True

    class Products(weight_gradients._Products):
        forgets = False

        @staticmethod
        def wgrad_gemm_accum_fp32(inputs: Any, grad: Any, main_grad: Any) -> None:
            nonlocal calls
            calls += 1
            if not (Products.forgets and calls % 10 == 0):
                weight_gradients._Products.wgrad_gemm_accum_fp32(inputs, grad, main_grad)

    monkeypatch.setattr(settings, "add_in_place", install)
    assert curve(config) == want
    assert calls >= 5 * 4 * 4, "each linear map of each micro-batch"
    with monkeypatch.context() as patch:
        patch.setattr(model_layers, "into_main_grad", lambda weight: lambda: (torch.empty_like(weight), True))
        assert curve(config, 1)[1] != want[1]
    Products.forgets = True
    assert curve(config, 1)[1] != want[1]


@pytest.mark.parametrize("clip", [0.0, 0.5, 1e3])
def test_division_and_clipping_in_the_update(clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(training__clip=clip)
    want = curve(config)
    monkeypatch.setattr(Optimizer, "__init__", functools.partialmethod(Optimizer.__init__, divides=True))
    found = curve(config)
    assert found[::2] == pytest.approx(want[::2], rel=2e-6), "losses and weights"
    assert found[1::2] == pytest.approx(want[1::2], rel=1e-4)
    if clip == 0.5:
        # AdamW hardly sees a constant factor: norms that differ from step to step make it show.
        monkeypatch.setattr(Optimizer, "_divide_in_update", lambda self, divisor: None)
        assert curve(config)[-1] != pytest.approx(want[-1], rel=2e-6), "the control: nothing divides"


def test_the_update_is_launched_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipping by what only the device knows, as by what the host has read."""
    want = curve(toy_config(training__clip=0.5))
    order: list[str] = []
    step = FusedAdamW.step

    def read_later(values: torch.Tensor) -> Callable[[], list[float]]:
        def read() -> list[float]:
            order.append("read")
            return list(values.tolist())

        return read

    monkeypatch.setattr(optimizer, "_read_later", read_later)
    monkeypatch.setattr(FusedAdamW, "step", lambda self: (order.append("update"), step(self)))
    found = curve(toy_config(training__clip=0.5, engine__optimizer="lst_kernels"))
    assert order == ["update", "read"] * 5
    assert found[::2] == pytest.approx(want[::2], rel=2e-6), "losses and weights"
    assert found[1::2] == pytest.approx(want[1::2], rel=1e-4)
    other = curve(toy_config(training__clip=0.0, engine__optimizer="lst_kernels"))
    assert other[-1] != pytest.approx(want[-1], rel=2e-6), "the control: clipping shows"


def test_a_step_that_is_not_finite_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Optimizer, "__init__", functools.partialmethod(Optimizer.__init__, divides=True))
    config = toy_config()
    with engine_of(config) as engine:
        rows = toy_rows(config, config.training.global_batch)
        before = {name: w.clone() for name, w in engine.export_weights().items()}
        plain = engine._training_loss
        monkeypatch.setattr(engine, "_training_loss", lambda losses, batch: plain(losses * float("nan"), batch))
        assert engine.step(rows, lr=1e-2).skipped
        assert all(torch.equal(before[name], w) for name, w in engine.export_weights().items())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, marks=pytest.mark.slow),
        {"training__precision": "bf16"},
        pytest.param({"engine__distributed_optimizer": False}, marks=pytest.mark.slow),
    ],
)
def test_adamw_of_the_kernels_is_pytorchs(changes: dict[str, Any], tmp_path: Path) -> None:
    """Ten steps on a CPU in its reference: losses, norms and weights; then saved by one and continued by the other."""
    want = curve(toy_config(**changes), 10)
    config = toy_config(engine__optimizer="lst_kernels", **changes)
    found = curve(config, 10)
    bf16 = "training__precision" in changes
    assert found[::2] == pytest.approx(want[::2], rel=1e-3 if bf16 else 2e-6)
    assert found[1::2] == pytest.approx(want[1::2], rel=1e-2 if bf16 else 1e-4)
    rows = toy_rows(config, config.training.global_batch)
    with engine_of(config) as engine:
        assert engine.describe()["optimizer"] == "lst_kernels"
        for _ in range(3):
            engine.step(rows, lr=3e-3)
        for part in engine.optimizer.core.chained_optimizers:  # the update itself has rounded the weights
            for main, copy in part.optimizer.copies.items():
                assert torch.equal(copy.view(-1), main.detach().bfloat16().view(-1))
            assert bool(part.optimizer.copies) == bf16
        engine.save(tmp_path)
        kept = [engine.step(rows, lr=3e-3).loss for _ in range(2)]
    for other in ("lst_kernels", "torch"):
        with engine_of(toy_config(engine__optimizer=other, **changes)) as engine:
            engine.load(tmp_path)
            again = [engine.step(rows, lr=3e-3).loss for _ in range(2)]
        assert again == (kept if other == "lst_kernels" else pytest.approx(kept, rel=1e-3 if bf16 else 2e-6))


def test_adamw_of_the_kernels_leaves_out_what_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is not finite nothing is applied, and nothing is counted."""
    config = toy_config(engine__optimizer="lst_kernels")
    with engine_of(config) as engine:
        rows = toy_rows(config, config.training.global_batch)
        before = {name: w.clone() for name, w in engine.export_weights().items()}
        plain = engine._training_loss
        with monkeypatch.context() as patches:
            patches.setattr(engine, "_training_loss", lambda losses, batch: plain(losses * float("nan"), batch))
            assert engine.step(rows, lr=1e-2).skipped
        assert all(torch.equal(before[name], w) for name, w in engine.export_weights().items())
        assert engine._tensors.get_step() == 0
        assert not engine.step(rows, lr=1e-2).skipped
        assert engine._tensors.get_step() == 1


@pytest.mark.parametrize("fails", [False, True])
def test_gradients_of_an_earlier_step_never_leak(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """The buffer is not zeroed: a step's first gradients are written. Filled with NaN it gives the same; the control
    adds, as Megatron-core does."""
    from megatron_lst.engines.megatron import wrapper

    config = toy_config()
    if fails:
        monkeypatch.setattr(wrapper, "expect_first", lambda main_grad: None)
    with engine_of(config) as engine:
        rows = toy_rows(config, config.training.global_batch)
        want = [engine.step(rows, lr=0.0).grad_norm for _ in range(2)]
        for chunk in engine._wrapped:
            for parameter in chunk.params_with_grad:
                parameter.main_grad.fill_(float("nan"))
        found = engine.step(rows, lr=0.0).grad_norm
    if fails:
        assert found != found
        assert want[1] != pytest.approx(want[0], rel=1e-3), "twice the gradient"
    else:
        assert found == want[0] == want[1]


def test_a_weight_without_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one micro-batch: the others' stand. In none of a step: its gradient is 0, not that of the step before."""
    from megatron_lst.engines.megatron import wrapper

    config = toy_config()
    with engine_of(config) as engine:
        rows = toy_rows(config, config.training.global_batch)
        engine.step(rows, lr=0.0)
        chunk = engine._wrapped[0]
        some = next(p for p in chunk.params_with_grad if p.dim() == 1)
        before = some.main_grad.clone()
        assert before.any()
        chunk.zero_grad_buffer()
        some.grad = torch.ones_like(some)
        hook = chunk._make_backward_post_hook(some)
        hook()
        assert torch.equal(some.main_grad, torch.ones_like(some.main_grad)), "written"
        some.grad = torch.ones_like(some)
        hook()
        assert torch.equal(some.main_grad, 2 * torch.ones_like(some.main_grad)), "then added"
        other = next(p for p in chunk.params_with_grad if p is not some)
        assert other.main_grad.any()
        wrapper.clear_stale(engine._wrapped)
        assert not other.main_grad.any()
        assert some.main_grad.any()
