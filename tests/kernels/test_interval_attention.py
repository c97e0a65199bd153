"""interval_attention against a dense float64 oracle: outputs and gradients."""

import pytest
import torch
from torch import Tensor

from lst_kernels import interval_attention, interval_attention_joint, queries_of_keys
from lst_kernels.interval_attention.reference import interval_attention_reference


def oracle(q: Tensor, k: Tensor, v: Tensor, k_start: Tensor, k_end: Tensor, scale: float | None = None) -> Tensor:
    """Dense [Nq, Nk] mask, one einsum: slow and plainly right."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    key = torch.arange(k.shape[0])
    seen = (key >= k_start[:, None]) & (key < k_end[:, None])
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    scores = scores.masked_fill(~seen, -1e300)
    weights = scores.softmax(-1) * seen
    return torch.einsum("hqk,khd->qhd", weights, v)


def window(tokens: int, width: int, documents: tuple[int, ...] = ()) -> tuple[Tensor, Tensor, int]:
    t = torch.arange(tokens)
    begin = torch.zeros(tokens, dtype=torch.long)
    for d in documents:
        begin[d:] = d
    return torch.maximum(begin, t - width + 1).int(), (t + 1).int(), tokens


def cross(tokens: int, keys_per_unit: int, skip: int = 0) -> tuple[Tensor, Tensor, int]:
    """Decoder cross-attention: token t sees the k keys of unit c(t) = t // 3; the first `skip` see
    nothing."""
    c = torch.arange(tokens).clamp(min=skip) // 3
    start, end = c * keys_per_unit, (c + 1) * keys_per_unit
    end[:skip] = start[:skip]
    return start.int(), end.int(), int(end[-1])


def wide_cross(tokens: int) -> tuple[Tensor, Tensor, int]:
    """Units of the same document seen so far, with leading queries that see none."""
    t = torch.arange(tokens)
    half = tokens // 2
    start = torch.where(t < half, 0, half // 2)
    return start.int(), torch.maximum(start, t // 2).int(), tokens // 2 + 3


CASES = {
    "window": lambda: window(75, 8, (25,)),
    "window-many-tiles": lambda: window(700, 300, (5, 400)),
    "causal": lambda: window(300, 10**6, (100, 101)),
    "one": lambda: window(1, 4),
    "cross-narrow": lambda: cross(70, 2),
    "cross-narrow-empty": lambda: cross(70, 2, skip=7),
    "cross-four": lambda: cross(31, 4),
    "cross-wide-empty": lambda: wide_cross(301),
    "cross-wide-empty-small": lambda: wide_cross(45),
    "all-empty": lambda: (torch.zeros(9, dtype=torch.int32), torch.zeros(9, dtype=torch.int32), 5),
}
TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 4e-2}


def inputs(
    case: str, dtype: torch.dtype, heads: int, kv_heads: int, dim: int = 16
) -> tuple[list[Tensor], Tensor, Tensor]:
    torch.manual_seed(0)
    k_start, k_end, keys = CASES[case]()
    shapes = [(len(k_start), heads, dim), (keys, kv_heads, dim), (keys, kv_heads, dim)]
    return [torch.randn(s, dtype=torch.float64).to(dtype) for s in shapes], k_start, k_end


def compare(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    for name, a, b in zip(("out", "dq", "dk", "dv"), ours, theirs, strict=True):
        assert not a.isnan().any(), name
        error = (a.double() - b).abs().max() / b.abs().max().clamp(min=1.0)
        assert error <= tolerance, f"{name}: {error:.2e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_reference_equals_oracle(case: str, heads: tuple[int, int], dtype: torch.dtype) -> None:
    qkv, k_start, k_end = inputs(case, dtype, *heads)
    ours = [x.clone().requires_grad_() for x in qkv]
    theirs = [x.double().requires_grad_() for x in qkv]
    out, want = interval_attention(*ours, k_start, k_end), oracle(*theirs, k_start, k_end)
    grad = torch.randn(out.shape, dtype=torch.float64).to(dtype)
    got = torch.autograd.grad(out, ours, grad)
    expected = torch.autograd.grad(want, theirs, grad.double())
    assert out.dtype == dtype
    compare([out, *got], [want, *expected], TOLERANCE[dtype])


@pytest.mark.parametrize("case", ["window-many-tiles", "cross-narrow-empty"])
def test_unseen_keys_change_nothing(case: str) -> None:
    """Bit-identical results before position t when everything from t on is replaced."""
    (q, k, v), k_start, k_end = inputs(case, torch.float64, 4, 2)
    before = interval_attention(q, k, v, k_start, k_end)
    cut = len(q) // 2
    key = int(k_end[cut - 1])
    q[cut:], k[key:], v[key:] = (
        torch.randn_like(q[cut:]),
        torch.randn_like(k[key:]) * 50,
        torch.randn_like(v[key:]) * 50,
    )
    after = interval_attention(q, k, v, k_start, k_end)
    assert torch.equal(before[:cut], after[:cut])
    assert not torch.equal(before[cut:], after[cut:])


@pytest.mark.parametrize("case", ["window", "cross-narrow-empty"])
def test_heads_first_storage(case: str) -> None:
    """Queries and keys that are stored [H, N, D], or cut out of one projection, are read where they lie."""
    (q, k, v), k_start, k_end = inputs(case, torch.float64, 4, 2)
    stored = [t.transpose(0, 1).contiguous().requires_grad_() for t in (q, k, v)]
    fused = torch.cat([k, v], 2).requires_grad_()
    want = oracle(q, k, v, k_start, k_end)
    out = interval_attention(*[t.transpose(0, 1) for t in stored], k_start, k_end)
    torch.testing.assert_close(out, want, rtol=1e-11, atol=1e-11)
    out.sum().backward()
    cut = interval_attention(q, fused[..., :16], fused[..., 16:], k_start, k_end)
    torch.testing.assert_close(cut, want, rtol=1e-11, atol=1e-11)
    cut.sum().backward()
    torch.testing.assert_close(fused.grad[..., :16], stored[1].grad.transpose(0, 1), rtol=1e-11, atol=1e-11)


def test_gather_and_tiles_agree() -> None:
    qkv, k_start, k_end = inputs("cross-narrow-empty", torch.float64, 4, 2)
    scale = qkv[0].shape[-1] ** -0.5
    gathered, tiled = (interval_attention_reference(*qkv, k_start, k_end, scale, widest) for widest in (99, -1))
    assert not torch.equal(tiled, gathered), "two ways: their last bits differ"
    torch.testing.assert_close(tiled, gathered, rtol=1e-12, atol=1e-12)


def test_no_queries_and_no_keys() -> None:
    none = torch.zeros(0, dtype=torch.int32)
    q, k = torch.randn(0, 2, 8, requires_grad=True), torch.randn(5, 2, 8, requires_grad=True)
    assert interval_attention(q, k, k, none, none).shape == (0, 2, 8)
    q, k = torch.randn(3, 2, 8, requires_grad=True), torch.randn(0, 2, 8, requires_grad=True)
    zero = torch.zeros(3, dtype=torch.int32)
    out = interval_attention(q, k, k, zero, zero)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(3, 2, 8))
    assert torch.equal(q.grad, torch.zeros(3, 2, 8))


def bad_inputs() -> dict[str, tuple[str, tuple]]:
    q, k = torch.randn(4, 4, 8), torch.randn(6, 2, 8)
    start, end = torch.tensor([0, 0, 1, 2], dtype=torch.int32), torch.tensor([1, 2, 3, 6], dtype=torch.int32)
    good, seen_by = (q, k, k, start, end, None, "auto"), queries_of_keys(start, end, 6)
    return {
        "rank": ("must be", (q[0], k, k, start, end)),
        "k and v differ": ("must be", (q, k, k[:5], start, end)),
        "heads": ("Hk must divide H", (q[:, :3], k, k, start, end)),
        "dtype": ("dtypes must agree", (q.double(), k, k, start, end)),
        "integers": ("dtype must be", (q.int(), k.int(), k.int(), start, end)),
        "bounds int64": ("int32", (q, k, k, start.long(), end.long())),
        "bounds length": ("entries", (q, k, k, start[:3], end[:3])),
        "decreasing start": ("k_start must not decrease", (q, k, k, start.flip(0), end)),
        "decreasing end": ("k_end must not decrease", (q, k, k, start, end.flip(0))),
        "negative": ("below 0", (q, k, k, start - 1, end)),
        "past the end": ("past the 6 keys", (q, k, k, start, end + 1)),
        "device": ("must be on", (q, k, k, start.to("meta"), end.to("meta"))),
        "backend": ("no backend 'fast'", (q, k, k, start, end, None, "fast")),
        "seen_by for queries": ("seen_by must be int32", (*good, seen_by[:, :4].contiguous())),
        "seen_by int64": ("seen_by must be int32", (*good, seen_by.long())),
        "seen_by in columns": ("contiguous", (*good, seen_by.t().contiguous().t())),
        "seen_by elsewhere": ("seen_by must be on", (*good, seen_by.to("meta"))),
        "seen_by of another mask": ("the queries that see each key", (*good, queries_of_keys(start, start + 3, 6))),
    }


@pytest.mark.parametrize("name", bad_inputs())
def test_bad_input(name: str) -> None:
    message, arguments = bad_inputs()[name]
    with pytest.raises(ValueError, match=message):
        interval_attention(*arguments)


@pytest.mark.parametrize("case", CASES)
def test_queries_of_keys(case: str) -> None:
    """Beside a dense mask: no query that sees a key is outside, and where none is empty no other is inside."""
    k_start, k_end, keys = CASES[case]()
    first, last = queries_of_keys(k_start, k_end, keys)
    key, query = torch.arange(keys), torch.arange(len(k_start))[:, None]
    seen = (key >= k_start[:, None]) & (key < k_end[:, None])  # [Nq, Nk]
    within = (query >= first) & (query < last)
    assert not (seen & ~within).any()
    assert torch.equal(seen, within & (k_end > k_start)[:, None])


HALVES = {torch.float32: 1e-5, torch.float16: 4e-3}  # the interpreter computes bfloat16 wrongly


@pytest.mark.interpreter
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "dtype"), [(2, 2, 16, torch.float16), (4, 2, 24, torch.float32)])
@pytest.mark.parametrize("case", ["window", "one", "cross-narrow-empty", "cross-wide-empty-small", "all-empty"])
def test_triton_equals_oracle(case: str, heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    qkv, k_start, k_end = inputs(case, dtype, heads, kv_heads, dim)
    ours = [x.clone().requires_grad_() for x in qkv]
    theirs = [x.double().requires_grad_() for x in qkv]
    out = interval_attention(*ours, k_start, k_end, backend="triton")
    want = oracle(*theirs, k_start, k_end)
    grad = torch.randn(out.shape, dtype=torch.float64).to(dtype)
    got = torch.autograd.grad(out, ours, grad)
    expected = torch.autograd.grad(want, theirs, grad.double())
    compare([out, *got], [want, *expected], HALVES[dtype])


@pytest.mark.interpreter
@pytest.mark.parametrize("bounds", [(-3, 90), (0, 75)])
def test_triton_stays_inside_its_tensors(bounds: tuple[int, int]) -> None:
    """Bounds are not read before the launch on a GPU: wrong ones give wrong numbers, never a wrong
    address."""
    from lst_kernels.interval_attention.library import attention

    q = torch.randn(20, 2, 16)
    k_start = torch.full((20,), bounds[0], dtype=torch.int32)
    out, _ = attention(q, q, q, k_start, torch.full((20,), bounds[1], dtype=torch.int32), 0.25)
    assert out.isfinite().all()


@pytest.mark.interpreter
@pytest.mark.parametrize("joint", [False, True])
def test_intervals_turned_round_before(joint: bool) -> None:
    """The same bits as without; unchecked wrong ones change the keys' gradients and nothing else (the control)."""
    from lst_kernels.interval_attention.joint import attend
    from lst_kernels.interval_attention.library import attention

    (q, k, v), k_start, k_end = inputs("cross-wide-empty-small", torch.float32, 2, 1)
    tensors = [t.requires_grad_() for t in ((q, torch.stack((k, v), 1)) if joint else (q, k, v))]
    right = queries_of_keys(k_start, k_end, len(k))

    def gradients(seen_by: Tensor | None) -> list[Tensor]:
        out = (attend if joint else attention)(*tensors, k_start, k_end, 0.25, seen_by)[0]
        return list(torch.autograd.grad(out, tensors, torch.ones_like(out)))

    alone, given, wrong = (gradients(seen_by) for seen_by in (None, right, torch.zeros_like(right)))
    assert all(map(torch.equal, alone, given))
    assert torch.equal(alone[0], wrong[0])
    assert alone[1].any()
    assert not wrong[1].any()


@pytest.mark.interpreter
@pytest.mark.parametrize("given", [False, True])
def test_opcheck(given: bool) -> None:
    from lst_kernels.interval_attention.library import attention

    qkv, k_start, k_end = inputs("cross-narrow-empty", torch.float32, 2, 1)
    seen_by = queries_of_keys(k_start, k_end, len(qkv[1])) if given else None
    torch.library.opcheck(attention, (*[x.requires_grad_() for x in qkv], k_start, k_end, 0.25, seen_by))


@pytest.mark.parametrize(
    "case", ["window-many-tiles", "causal", "cross-wide-empty", "cross-narrow-empty", "one", "window"]
)
def test_flex_block_table(case: str) -> None:
    """The table built from the intervals' ends names every block that the dense mask touches, and full ones
    only if full."""
    from lst_kernels.interval_attention.flex import BLOCK, interval_block_mask

    _, k_start, k_end = inputs(case, torch.float32, 1, 1)
    keys = CASES[case]()[2]
    mask = interval_block_mask(k_start, k_end, keys)
    queries = len(k_start)
    rows, columns = -(-queries // BLOCK), -(-keys // BLOCK)
    dense = torch.zeros(rows * BLOCK, columns * BLOCK, dtype=torch.bool)
    key = torch.arange(keys)
    dense[:queries, :keys] = (key >= k_start[:, None]) & (key < k_end[:, None])
    blocks = dense.view(rows, BLOCK, columns, BLOCK).transpose(1, 2)
    assert mask.full_kv_num_blocks is not None
    assert mask.full_kv_indices is not None
    for row in range(rows):
        partial = mask.kv_indices[0, 0, row, : mask.kv_num_blocks[0, 0, row]].tolist()
        full = mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]].tolist()
        named = partial + full
        assert len(named) == len(set(named))
        assert {c for c in range(columns) if blocks[row, c].any()} <= set(named)
        real = min(BLOCK, queries - row * BLOCK)
        assert all(blocks[row, c][:real].all() for c in full)


@pytest.mark.parametrize("case", ["window", "cross-wide-empty"])
def test_flex_equals_oracle(case: str) -> None:
    from lst_kernels.interval_attention.flex import interval_attention_flex

    qkv, k_start, k_end = inputs(case, torch.float32, 4, 2)
    out = interval_attention_flex(*qkv, k_start, k_end, 0.25)
    want = oracle(*[x.double() for x in qkv], k_start, k_end)
    torch.testing.assert_close(out.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.interpreter
@pytest.mark.usefixtures("nan_filled")
@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("groups", [1, 2])
def test_joint_keys_and_values(groups: int, backend: str) -> None:
    """One tensor of both gives what two give, and one gradient; keys and values are no equals (the control)."""
    torch.manual_seed(0)
    q, kv = torch.randn(20, 2 * groups, 8), torch.randn(40, 2, 2, 8)
    start = 2 * (torch.arange(20) // 3)
    ours = [t.clone().requires_grad_() for t in (q, kv)]
    theirs = [t.double().requires_grad_() for t in (q, kv)]
    out = interval_attention_joint(*ours, start.int(), start.int() + 4, backend=backend)
    want = interval_attention(theirs[0], theirs[1][:, 0], theirs[1][:, 1], start.int(), start.int() + 4)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(out)
    found, expected = torch.autograd.grad(out, ours, grad), torch.autograd.grad(want, theirs, grad.double())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(found[1].flip(1).double(), expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.interpreter
def test_joint_opcheck() -> None:
    from lst_kernels.interval_attention.joint import attend

    t = torch.arange(6, dtype=torch.int32)
    q, kv = torch.randn(6, 2, 8, requires_grad=True), torch.randn(6, 2, 2, 8, requires_grad=True)
    torch.library.opcheck(attend, (q, kv, torch.zeros_like(t), t + 1, 0.3))
    torch.library.opcheck(
        attend, (q, kv, torch.zeros_like(t), t + 1, 0.3, queries_of_keys(torch.zeros_like(t), t + 1, 6))
    )
    with pytest.raises(ValueError, match="kv must be"):
        interval_attention_joint(q, q, t, t)
