"""One line of metrics.jsonl: what all data-parallel ranks saw and did in a step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from megatron_lst.config.schema import Config
from megatron_lst.engines.base import StepResult
from megatron_lst.errors import TrainingFault
from megatron_lst.patching.row import Row, batch_hash
from megatron_lst.planning.devices import peak_flops
from megatron_lst.training.ranks import Ranks
from megatron_lst.training.schedule import phase

_COUNTS = (
    "tokens",
    "speech_tokens",
    "text_tokens",
    "aligned",
    "with_speech",
    "clipped_patches",
    "skipped_documents",
    "training_mflops",
)


def job_peak(config: Config, device: torch.device, ranks: int) -> float | None:
    """bf16 FLOPs a second of `ranks` devices like this one; None on a CPU, on a device whose peak is not known, and
    in fp32, where that peak is out of reach."""
    if device.type != "cuda" or config.training.precision != "bf16":
        return None
    peak = peak_flops(torch.cuda.get_device_name(device))
    return None if peak is None else peak * ranks


class StepRecorder:
    """Makes a step's record, and keeps the running totals of raw tokens by source.

    What the ranks know of their rows travels as `numbers` in the reduction that the step makes anyway: counts, and the
    hash of each row in its place of the global batch, in two halves. All ranks that feed the same rows add the same, so
    that each sees in the sums whether its model-parallel peers trained on the same batch.
    """

    def __init__(self, config: Config, ranks: Ranks, data_size: int, peak: float | None = None) -> None:
        """
        Args:
            data_size: shares of the global batch.
            peak: FLOPs a second of all devices together, None where it is not known.
        """
        self._peak = peak
        self._config, self._ranks = config, ranks
        self._peers = ranks.world_size // data_size
        self._sources = [source.name for source in config.data.sources]
        self._raw_tokens = np.zeros(len(self._sources), np.int64)
        self._header = len(_COUNTS) + len(self._sources)

    @property
    def raw_tokens(self) -> dict[str, int]:
        """Tokens of each source so far."""
        return dict(zip(self._sources, (int(n) for n in self._raw_tokens), strict=True))

    def restore(self, raw_tokens: dict[str, int]) -> None:
        self._raw_tokens = np.array([raw_tokens.get(name, 0) for name in self._sources], np.int64)

    def numbers(self, rows: Sequence[Row]) -> np.ndarray:
        """What this rank adds to the sums, float64 [counts + 2 * global_batch]: all of them whole and below 2^53.

        Args:
            rows: those that this rank built.
        """
        batch = self._config.training.global_batch
        hashes = np.zeros((2, batch))  # upper and lower 32 bits
        for row in rows:
            hashes[:, row.index % batch] = divmod(row.hash, 1 << 32)
        return np.concatenate([np.array(self._counts(rows), np.float64), hashes.ravel()])

    def record(
        self, step: int, lr: float, result: StepResult, rows: Sequence[Row], sums: Sequence[float], seconds: float
    ) -> dict[str, Any]:
        """The step's record.

        Args:
            rows: those that this rank built.
            sums: of all ranks' `numbers`.
            seconds: wall time of the step, data included.

        Raises:
            TrainingFault: model-parallel peers built different rows.
        """
        values = np.array(sums)
        total = (values[: self._header] / self._peers).astype(np.int64)
        halves = values[self._header :].reshape(2, -1)
        for row in rows:
            upper, lower = divmod(row.hash, 1 << 32)
            place = halves[:, row.index % halves.shape[1]]
            if place[0] != self._peers * upper or place[1] != self._peers * lower:
                raise TrainingFault(
                    f"step {step}: rank {self._ranks.rank} and its model-parallel peers built different rows "
                    f"(row {row.index}); their shards or their code differ"
                )
        hashes = [(int(u) << 32) + int(v) for u, v in zip(*(halves / self._peers), strict=True)]
        counts = dict(zip(_COUNTS, (int(n) for n in total), strict=False))
        self._raw_tokens += total[len(_COUNTS) :]
        units = len(hashes) * self._config.data.units
        flops = counts["training_mflops"] * 1e6
        return {
            "step": step,
            "loss": result.loss,
            "loss_speech": result.loss_speech,
            "loss_text": result.loss_text,
            "loss_marker": result.loss_marker,
            "grad_norm": result.grad_norm,
            "lr": lr,
            "lr_phase": phase(step, self._config.training),
            "rows": len(hashes),
            "units": units,
            "tokens": counts["tokens"],
            "speech_tokens": counts["speech_tokens"],
            "text_tokens": counts["text_tokens"],
            "targets": result.targets,
            "seconds": seconds,
            "units_per_second": units / seconds,
            "mfu": flops / seconds / self._peak if self._peak else None,
            "batch_hash": batch_hash(hashes),
            "aligned_share": counts["aligned"] / counts["with_speech"] if counts["with_speech"] else None,
            "clipped_patches": counts["clipped_patches"],
            "skipped": result.skipped,
            "skipped_documents": counts["skipped_documents"],
            "raw_tokens": self.raw_tokens,
        }

    def _counts(self, rows: Sequence[Row]) -> list[int]:
        vocabulary = self._config.vocabulary
        speech = [int(vocabulary.is_speech(r.tokens).sum()) for r in rows]
        padding = [int((r.tokens == vocabulary.pad).sum()) for r in rows]
        lengths = [len(r.tokens) for r in rows]
        return [
            sum(lengths),
            sum(speech),
            sum(lengths) - sum(speech) - sum(padding),
            sum(r.statistics.aligned_documents for r in rows),
            sum(r.statistics.speech_documents for r in rows),
            sum(r.statistics.clipped_patches for r in rows),
            sum(r.statistics.skipped_documents for r in rows),
            round(sum(r.statistics.training_flops for r in rows) / 1e6),
            *(sum(r.statistics.tokens_by_source.get(name, 0) for r in rows) for name in self._sources),
        ]
