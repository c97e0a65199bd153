"""A whole toy step on the Triton kernels, under the interpreter, beside the same step on the references.

Minutes: TRITON_INTERPRET=1 python -m pytest -m "interpreter and slow" tests/kernels/test_model.py
"""

import sys
from typing import Any

import pytest

from lst_kernels.backends import BACKENDS
from megatron_lst.config.schema import Config
from tests.support.single import engine_of
from tests.support.toy import toy_config, toy_rows


def with_triton(patch: pytest.MonkeyPatch) -> list[str]:
    """Every operation takes its Triton kernel wherever it would on a GPU; the names of those that were asked for."""
    asked = []

    def choose(op: str, *_: Any, **__: Any) -> str:
        asked.append(op)
        return "triton"

    for name, module in list(sys.modules.items()):
        if name.startswith("lst_kernels.") and "triton" in BACKENDS.get(name.rpartition(".")[2], ()):
            patch.setattr(module, "choose_backend", choose)
    return asked


def curve(config: Config) -> list[float]:
    with engine_of(config) as engine:
        result = engine.step(toy_rows(config, 1), lr=1e-2)
    return [result.loss, result.grad_norm]


@pytest.mark.slow
@pytest.mark.interpreter
@pytest.mark.parametrize("options", [{}, {"model__text_path": "direct", "model__double_residual": True}], ids=str)
def test_a_step_is_that_of_the_references(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = toy_config(
        **options, model__layers=1, model__decoder_layers=1, model__heads=1, model__local_heads=1,
        engine__loss_chunk=64, training__global_batch=1, training__micro_batch=1,
    )  # fmt: skip
    want = curve(config)
    asked = with_triton(monkeypatch)
    assert curve(config) == pytest.approx(want, rel=2e-5)
    assert {"rms_norm", "swiglu", "interval_attention", "packed_attention", "patch_pool"} <= set(asked)
