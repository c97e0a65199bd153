"""Triton pieces shared by the patch kernels."""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are typed when it is compiled, by what it is called with)

import triton
import triton.language as tl


@triton.jit
def patch_span(start_ptr, end_ptr, p, T):
    """First token and length of patch p, held inside [0, T) so that wrong bounds cannot leave the tensors."""
    start = tl.maximum(tl.load(start_ptr + p), 0)
    end = tl.minimum(tl.load(end_ptr + p), T)
    return start, tl.maximum(end - start, 0)


@triton.jit
def next_start(start_ptr, end_ptr, p, P, T):
    """First token of the next patch after p that is not empty, or T.

    A patch's program also writes the (zero) gradient of the loose tokens after it, up to this token: so
    nothing has to be cleared beforehand.
    """
    found = T
    i = p + 1
    while (i < P) & (found == T):  # past patches without tokens, 128 at a time
        j = i + tl.arange(0, 128)
        start = tl.load(start_ptr + j, mask=j < P, other=0)
        end = tl.load(end_ptr + j, mask=j < P, other=0)
        found = tl.min(tl.where(end > start, start, T))  # starts never decrease: the least is the next
        i += 128
    return found
