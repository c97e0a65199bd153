"""`lst_kernels.compile_check`: every kernel compiles for every target as meant, and what is not as meant is found."""

import os
from dataclasses import replace

import pytest

pytest.importorskip("triton")
from lst_kernels.compile_check import PAPER, TARGETS, CompiledKernel, Shape, _judge, check, report

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="needs Triton's compiler")
KERNELS = {
    "pool_forward",
    "pool_backward",
    "unpool_forward",
    "unpool_backward",
    "patch_attention_forward",
    "patch_attention_backward",
    "interval_forward",
    "interval_backward_dq",
    "interval_backward_dkdv",
    "rotary_turn",
    "packed_turn",
    "norm_forward",
    "norm_backward",
    "norm_columns",
    "swiglu_forward",
    "swiglu_backward",
    "softmax_statistics",
    "softmax_gradient",
    "softmax_ahead",
    "adamw_update",
}


@pytest.mark.parametrize("target", TARGETS)
def test_1b_is_as_meant(target: str) -> None:
    rows = check(PAPER[:1], [target])
    assert {result.kernel for result in rows} == KERNELS
    assert all(result.ok for result in rows), report(rows)


def test_grouped_queries_and_four_queries_a_patch() -> None:
    rows = check(PAPER[1:], ["sm_90"])
    assert {"patch_attention k=4 D=64 (7B)", "packed_attention D=128 group=8 (70B)"} <= {r.shape for r in rows}
    assert all(result.ok for result in rows), report(rows)


@pytest.mark.slow
def test_every_published_size_on_every_target() -> None:
    rows = check(PAPER, TARGETS)
    assert all(result.ok for result in rows), report(rows)


def test_lost_alignment_is_found() -> None:
    """A width that is no multiple of 16 costs the 128-bit loads; the check must see it."""
    rows = check([Shape("odd", 1000, 125, 2, 4, 4, 64)], ["sm_90"], "patch_pool")
    pool = next(result for result in rows if result.kernel == "pool_forward")
    assert pool.problems == ["no 128-bit loads"]
    assert "no 128-bit loads" in report(rows)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"spilled": 8}, "spills (8)"),
        ({"shared": 300_000}, "over the limit"),
        ({"wide_loads": 0}, "no 128-bit loads"),
        ({"tensor_core": 0}, "no wgmma"),
        ({"atomics": 2}, "2 atomics"),
    ],
)
def test_judgement(change: dict[str, int], problem: str) -> None:
    result = CompiledKernel("interval_forward", "x", "sm_90", registers=10, shared=1000, wide_loads=2, tensor_core=4)
    _judge(result)
    assert result.ok
    result = replace(result, problems=[], **change)
    _judge(result)
    assert problem in result.problems[0]


def test_a_new_length_compiles_nothing_new() -> None:
    """Steps differ in their number of tokens; as long as it is padded to a multiple of 16, no kernel is built anew."""
    once = check(PAPER[:1], ["sm_90"])
    assert len(check(PAPER[:1], ["sm_90"], lengths=(256, 1024, 512))) == len(once)
    assert len(check(PAPER[:1], ["sm_90"], "patch_pool", lengths=(256, 260))) > 2, "the control: 260 does build anew"


def test_narrow_models_are_compiled_but_not_held_to_speed() -> None:
    """The demo's widths have no full-width loads to make: said, not refused."""
    result = CompiledKernel("pool_forward", "x", "sm_90", narrow=True)
    _judge(result)
    assert result.ok
    rows = check([Shape("demo", 96, 4, 2, 4, 4, 48)], ["sm_90"], "patch_pool")
    assert all(r.ok and r.narrow and not r.wide_loads for r in rows)


def test_unknown_target() -> None:
    with pytest.raises(ValueError, match="unknown target 'sm_12'"):
        check(PAPER[:1], ["sm_12"])


def test_impossible_shape() -> None:
    with pytest.raises(ValueError, match="must divide"):
        Shape("odd", 1000, 16, 2, 16, 16, 128)
