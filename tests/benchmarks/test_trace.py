"""The trace fails, or says so, where a step does what it may not; see test_stages for what real steps do."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from benchmarks.rows import synthetic_rows
from megatron_lst.config.load import load_config
from megatron_lst.model.layers import Layer
from megatron_lst.simulation.rank import traced_rank
from megatron_lst.simulation.trace import Trace, dense, trace_schedule

CONFIG = load_config(Path(__file__).resolve().parents[2] / "configs" / "lst-1b.yaml", ["data.units=4000"])


def trace_with(fault: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Trace, set[int]]:
    """A micro-batch in whose decoder the last norm's input goes through `fault`, and the weights' widths."""
    rows = list(islice(synthetic_rows(CONFIG, 1500), CONFIG.training.micro_batch))
    with traced_rank(CONFIG) as engine, pytest.MonkeyPatch.context() as patch:
        norm = engine.chunks[0].decoder.norm
        plain = norm.forward
        patch.setattr(norm, "forward", lambda x, *residual: plain(fault(x), *residual))
        trace = trace_schedule(engine, rows)
        widths = {size for p in engine.chunks[0].parameters() for size in p.shape}
    return trace, widths | {CONFIG.engine.loss_chunk}


@pytest.mark.parametrize("kind", ["a value", "a shape from data", "a tensor of the host"])
def test_what_reads_a_value_fails(kind: str) -> None:
    def fault(x: torch.Tensor) -> torch.Tensor:
        if kind == "a value":
            assert float(x.detach().sum()) > 0
        elif kind == "a shape from data":
            return x[x[:, 0, 0] > 0]
        return x + torch.ones(x.shape[-1], device="cpu")

    with pytest.raises((RuntimeError, AssertionError)):
        trace_with(fault)


def test_a_dense_mask_is_seen() -> None:
    def fault(x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(len(x), len(x), dtype=torch.bool, device=x.device)
        return x * mask[:, :1, None]

    (found,) = dense(*trace_with(fault))
    assert found.name == "aten.ones"


def test_a_trace_leaves_nothing_behind() -> None:
    """The next engine in this process is a real one again."""
    from megatron_lst.parallel import cpu

    assert not dense(*trace_with(lambda x: x))
    assert not torch.distributed.is_initialized()
    assert torch.zeros(1, device=cpu.device()).device == cpu.device()
    assert cpu.on_cpu() == (not torch.cuda.is_available())


@pytest.mark.parametrize("text_path", ["patch", "direct"])
def test_nothing_is_copied_for_its_shape_alone(text_path: str) -> None:
    """An axis of one is squeezed: `x[:, 0]` would fill a gradient with zeros and copy into it.

    And no gradient of rows that an index picks adds one row after the other (`units[patch.clamp(min=0)]`).
    """
    rows = list(islice(synthetic_rows(CONFIG, 1500), CONFIG.training.micro_batch))
    config = replace(CONFIG, model=replace(CONFIG.model, text_path=text_path))
    with traced_rank(config) as engine:
        operations = trace_schedule(engine, rows).operations
    names = [op.name for op in operations]
    assert "aten.select_backward" not in names
    assert "lst_kernels.packed_attention_backward" in names
    written = [op for op in operations if op.name in ("aten.copy_", "aten.add_.Tensor") and op.phase == "backward"]
    assert not [op for op in written if len(op.outputs[0]) == 1], "norms add the gradient of their weight themselves"
    assert sum(name == "aten.cat" for name in names) < 3, "not one a layer, to put gradients of q, k and v together"
    softmax = {name for name in names if "softmax" in name}
    apart = {"lst_kernels.softmax_statistics", "lst_kernels.softmax_gradient"}
    assert softmax == (apart if text_path == "direct" else {"lst_kernels.softmax_ahead"})
    lookups = sum(name.startswith("aten.index_put") for name in names)
    assert lookups <= (1 if text_path == "direct" else 0), "the text head's units, each of which is read once"
    by_keys = ("lst_kernels.packed_attention_backward", "lst_kernels.interval_attention_joint_backward")
    given = {op.name: [shape for shape in op.shapes if len(shape) == 2 and shape[0] == 2] for op in operations}
    assert all(given[name] for name in by_keys), "a mask is turned round once, by the host"
    trace, _ = trace_with(lambda x: x[:, 0][:, None])
    assert any(op.name == "aten.select_backward" for op in trace.operations), "the control: the trace would see it"


def test_residuals_are_added_in_norms() -> None:
    """Written out are the sums that others read, too: of the last global layer, and of the encoder's one layer."""
    rows = list(islice(synthetic_rows(CONFIG, 1500), CONFIG.training.micro_batch))
    widths = ((1, CONFIG.model.hidden), (1, CONFIG.model.local_hidden))
    sums = []
    for at_once in (False, True):
        with traced_rank(CONFIG) as engine:
            for module in engine.chunks[0].modules():
                if isinstance(module, Layer):
                    module.adds |= at_once
            operations = trace_schedule(engine, rows).operations
        forward = [op for op in operations if op.phase == "forward" and op.name.startswith("aten.add.")]
        sums.append(sum(op.outputs[0][1:] in widths for op in forward))
    model = CONFIG.model
    assert sums == [2, model.layers + model.encoder_layers + model.decoder_layers]
