"""fp8 training of the global transformer.

The real thing needs a GPU with Transformer Engine (the last test). Without one a stand-in takes that package's place,
so that what Megatron-core makes of the configuration is seen: layers, autocast, recomputation, quantised weights.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_lst.engines import build_engine
from megatron_lst.errors import UserError
from megatron_lst.model import fp8
from megatron_lst.model.settings import global_settings
from megatron_lst.parallel import accelerators
from megatron_lst.parallel.layout import ParallelLayout
from megatron_lst.parallel.split import pipeline_split
from tests.support.single import engine_of
from tests.support.stand_in_engine import State
from tests.support.toy import toy_config, toy_rows

ROOT = Path(__file__).parents[2]
IN_FP8 = {"training__precision": "bf16", "model__ffn": 128, "engine__fp8": "hybrid"}


class Blackwell(State):
    @staticmethod
    def is_mxfp8_available() -> tuple[bool, str]:
        return True, ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_transformer_engine_it_is_refused_in_words() -> None:
    with pytest.raises(UserError, match=r"engine\.fp8=hybrid: Transformer Engine.*cannot be imported.*NGC.*fp8=none"):
        build_engine(toy_config(**IN_FP8))
    with pytest.raises(UserError, match="does not take the Transformer Engine"):
        fp8.linear_layers()


def test_the_device_decides_on_the_recipe() -> None:
    assert accelerators.fp8_recipe("none", "mxfp8") is None, "nothing is probed"
    assert accelerators.fp8_recipe("hybrid", "auto", State) == "tensorwise"
    with pytest.raises(UserError, match="no blockwise recipe here .needs CUDA 12.9."):
        accelerators.fp8_recipe("hybrid", "blockwise", State)
    assert accelerators.fp8_recipe("e4m3", "auto", Blackwell) == "mxfp8"
    old = type("Old", (), {"is_fp8_available": State.is_fp8_available})
    with pytest.raises(UserError, match="2.3 or later"):
        accelerators.fp8_recipe("hybrid", "tensorwise", old)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_megatron_core_takes_the_settings(recompute: str) -> None:
    config = toy_config(**IN_FP8, training__recompute=recompute, parallel__pipeline=2)
    layout, split = ParallelLayout(1, 2, 1, 1, False), pipeline_split(config, 2, 1)
    settings = global_settings(config, layout, split, fp8_manager=Blackwell)
    assert (settings.fp8, settings.fp8_recipe, settings.fp8_param) == ("hybrid", "mxfp8", False)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (1, ["training__recompute=full"]),
        pytest.param(
            2,
            ["parallel__tensor=2", "parallel__sequence=true", "training__recompute=selective"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["recompute full", "TP2+SP recompute selective"],
)
def test_megatron_core_trains_in_fp8(tmp_path: Path, ranks: int, changes: list[str]) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    program = [*launcher, "-m", "tests.support.train_in_fp8", str(tmp_path), *changes]
    ran = subprocess.run([sys.executable, *program], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = torch.load(tmp_path / "result.pt", weights_only=False)
    plain, trained, resumed = found["bf16"], found["fp8"], found["resumed"]
    assert (plain["describe"]["fp8"], trained["describe"]["fp8"]) == ("none", "hybrid tensorwise")

    layers, steps, micro_batches = 4, 4, 4
    # Full recomputation computes everything twice, selective the two products of the SwiGLU.
    products = 8 if "training__recompute=full" in changes else 6
    assert found["counts"]["fp8"] == layers * products * steps * micro_batches
    assert found["counts"]["quantised"] == layers * 4 * steps, "anew in every step, and once"
    assert found["counts"]["bf16"] == layers * 4 * 2, "scoring, in two micro-batches"

    assert trained["losses"] == pytest.approx(plain["losses"], rel=1e-3)
    assert trained["losses"] != plain["losses"]
    assert trained["norms"] == pytest.approx(plain["norms"], rel=0.05)
    assert {n: w.shape for n, w in trained["weights"].items()} == {n: w.shape for n, w in plain["weights"].items()}
    assert resumed["losses"] == trained["losses"][2:], "nothing of fp8 is missing from a checkpoint"
    assert found["resumed in bf16"]["losses"] == pytest.approx(trained["losses"][2:], rel=1e-3)
    assert found["resumed in bf16"]["losses"] != trained["losses"][2:]


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("recipe", ["tensorwise", "blockwise", "mxfp8"])
def test_on_a_gpu_losses_are_near_those_of_bf16(recipe: str, recompute: str) -> None:
    """Within 2 % over ten steps, on the products of Transformer Engine itself."""
    try:
        accelerators.fp8_recipe("hybrid", recipe)
    except UserError as error:
        pytest.skip(str(error))
    from megatron.core.extensions import transformer_engine as core
    from transformer_engine.pytorch.fp8 import FP8GlobalStateManager

    curves, enabled = {}, []
    for kind in ("none", "hybrid"):
        config = toy_config(
            training__precision="bf16", training__recompute=recompute, data__units=128,
            model__hidden=256, model__ffn=512, engine__fp8=kind, engine__fp8_recipe=recipe,
        )  # fmt: skip
        rows = toy_rows(config, 8)
        with engine_of(config) as engine:
            layers = [m for m in engine.chunks[0].global_transformer.modules() if isinstance(m, core.TELinear)]
            assert len(layers) == (4 * config.model.layers if kind == "hybrid" else 0)
            for layer in layers:
                layer.register_forward_hook(lambda *_: enabled.append(FP8GlobalStateManager.is_fp8_enabled()))
            curves[kind] = [engine.step(rows, lr=1e-3).loss for _ in range(10)]
            if layers:
                assert all(enabled) and all(layer.fp8 for layer in layers)
                engine.score(rows[:1])
                assert not any(layer.fp8 for layer in layers), "scores are in bf16"
    assert curves["hybrid"] == pytest.approx(curves["none"], rel=0.02)
    assert curves["hybrid"] != curves["none"]
    assert curves["hybrid"][-1] < curves["hybrid"][0]
