"""Forced alignment through a CTC lattice: batched Viterbi in torch, on any device; the backtrace runs there too."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def ctc_align(
    log_probs: "torch.Tensor", targets: "torch.Tensor", frames: "torch.Tensor", lengths: "torch.Tensor", blank: int = 0
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Best path of each target through its emissions.

    Args:
        log_probs: [B, T, V] log-probabilities, padded along T.
        targets: int64 [B, L], padded along L with anything in [0, V).
        frames, lengths: int64 [B], how much of T and L is real; lengths >= 1.
        blank: the blank's id.

    Returns:
        states: int64 [B, T], 2i + 1 where target i is emitted, 2i where the blank before it is, -1 behind `frames`.
        scores: [B], log-probability of the path; -inf where no path exists (too few frames).
    """
    import torch

    batch, steps, _ = log_probs.shape
    longest = targets.shape[1]
    states, device = 2 * longest + 1, log_probs.device
    labels = torch.full((batch, states), blank, device=device, dtype=torch.long)  # [B, 2L + 1]: blank, 0, blank, 1, ...
    labels[:, 1::2] = targets
    may_skip = torch.zeros(batch, states, dtype=torch.bool, device=device)
    may_skip[:, 3::2] = targets[:, 1:] != targets[:, :-1]  # equal neighbours need the blank between them
    skip = torch.where(may_skip, 0.0, float("-inf"))  # added to the score of a step over a blank

    def emitted(t: int) -> "torch.Tensor":
        return log_probs[:, t].float().gather(1, labels)  # all steps at once would take five times the memory

    never = torch.full((batch, 1), float("-inf"), device=device)
    alpha = torch.full((batch, states), float("-inf"), device=device)  # best score of a path that ends in each state
    alpha[:, :2] = emitted(0)[:, :2]  # a path begins in the first blank or the first target
    back = torch.zeros(batch, steps, states, dtype=torch.uint8, device=device)  # states back: 0, 1 or 2
    final = alpha
    for t in range(1, steps):
        one = torch.cat([never, alpha[:, :-1]], 1)  # from the state before
        two = torch.cat([never, never, alpha[:, :-2]], 1) + skip  # from the target before, over the blank
        best, origin = torch.stack([alpha, one, two]).max(0)  # [B, 2L + 1] each
        alpha = best + emitted(t)
        back[:, t] = origin.to(torch.uint8)
        final = torch.where((frames - 1 > t - 1)[:, None], alpha, final)  # stays at each one's last real frame
    rows = torch.arange(batch, device=device)
    in_blank, in_label = final[rows, 2 * lengths], final[rows, 2 * lengths - 1]  # [B], the two states a path may end in
    state = torch.where(in_blank >= in_label, 2 * lengths, 2 * lengths - 1)
    scores = torch.maximum(in_blank, in_label)
    path = torch.full((batch, steps), -1, dtype=torch.long, device=device)
    for t in range(steps - 1, -1, -1):
        inside = t < frames  # [B]
        path[:, t] = torch.where(inside, state, -1)
        state = torch.where(inside, state - back[rows, t, state].long(), state)
    return path, scores


def torchaudio_align() -> "object | None":
    """torchaudio's `forced_align` where it imports (some 40 times faster), else None."""
    try:
        from torchaudio.functional import forced_align
    except (ImportError, OSError, RuntimeError, AttributeError):
        return None
    return forced_align  # type: ignore[no-any-return]
