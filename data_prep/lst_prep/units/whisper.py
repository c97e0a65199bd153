"""Features of Whisper's encoder (transformers), 50 a second joined to the rate of the units.

The audio goes in at its true length: the convention of OpenAI's decoder, silence up to 30 s, would change 6 to 10 % of
the units and cost as much for a word as for half a minute. Positions are the model's own, cut after the last frame.
Batches hold pieces of equal length only. Audio of more than 30 s, all that the model has positions for, is read in
windows that overlap; each frame is taken from the window in which it stands farther from an edge.

The states tell where in the window they stand: of tiny.en, half of their variance does, and the same speech two seconds
later would get other units in 99 of 100 frames. `Codebook.position_mean` takes that away.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lst_prep.audio import RATE
from lst_prep.config import UnitsConfig
from lst_prep.devices import choose_device, choose_dtype, model_fingerprint
from lst_prep.pieces import equal_length_batches
from lst_prep.units.codebook import Codebook
from megatron_lst.errors import UserError
from megatron_lst.vocabulary import rate_text

EMBEDDED = Path(__file__).resolve().parents[2] / "whisper-tiny.en"
"""The encoder that comes with the repository (not with the wheel)."""

EMBEDDED_WEIGHTS = "8e4a747aa10a799b"
"""Its fingerprint, by `model_fingerprint`."""


def _fingerprint(weights: str, layer: int) -> str:
    return hashlib.sha256(f"whisper {weights} layer {layer}".encode()).hexdigest()[:16]


EMBEDDED_FINGERPRINTS = tuple(_fingerprint(EMBEDDED_WEIGHTS, layer) for layer in range(5))
"""Of the extractor that has it, with each of its hidden layers."""


def is_embedded(codebook: Codebook) -> bool:
    """Whether a codebook clusters states of the encoder that comes with the repository."""
    return codebook.extractor_fingerprint in EMBEDDED_FINGERPRINTS


SAMPLES_PER_STATE = 320
"""The encoder's own frames are 20 ms: a hop of 10 ms, and a stride of 2."""

OVERLAP_SECONDS = 10.0
"""What two windows of long audio share."""


class _Window(NamedTuple):
    """Frames [start, end) of a piece are read at once; [first, last) of them are kept."""

    owner: int
    start: int
    end: int
    first: int
    last: int


class WhisperExtractor:
    """One loaded encoder. See `Extractor`.

    Raises:
        UserError: no Whisper can be loaded from `units.model`, or it has too few layers.
    """

    name = "whisper"

    def __init__(self, config: UnitsConfig) -> None:
        import torch

        self._torch = torch
        self._config, self.rate, self._frame = config, config.hertz, config.frame_samples
        if self._frame % SAMPLES_PER_STATE:
            raise UserError(f"units.rate: {rate_text(self.rate)}: whisper gives 50 Hz divided by a whole number")
        encoder, self._mel = load_encoder(config.model)
        layers = len(encoder.layers)
        layer = layers if config.layer is None else config.layer
        if not 0 <= layer <= layers:
            raise UserError(f"units.layer {layer}: the model has hidden layers 0..{layers}")
        self.dim = int(encoder.config.d_model)
        weights = model_fingerprint(encoder)
        if not config.model and weights != EMBEDDED_WEIGHTS:
            raise UserError(f"{EMBEDDED}: its weights are {weights}, not {EMBEDDED_WEIGHTS}; take it from git again")
        self.fingerprint = _fingerprint(weights, layer)
        self.settings = {"layer": layer, "piece_seconds": config.piece_seconds}
        self._layer, self._positions = layer, encoder.embed_positions.weight.detach().clone()
        self._device = choose_device(config.device)
        self._dtype = choose_dtype(config.precision, self._device)
        self._encoder = encoder.eval().to(self._device, self._dtype)
        self._budget = int(config.batch_seconds * RATE)
        longest = min(len(self._positions) * SAMPLES_PER_STATE, int(config.piece_seconds * RATE))
        self._window = longest // self._frame
        if longest < 2 * OVERLAP_SECONDS * RATE:
            raise UserError(f"units.piece_seconds {config.piece_seconds:g}: whisper reads windows of 20 to 30 s")

    @property
    def exact(self) -> bool:
        """Whether this is fp32."""
        return self._dtype == self._torch.float32

    def features(self, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 [N] each -> float32 [N // frame, dim] each."""
        found = [np.zeros((len(piece) // self._frame, self.dim), np.float32) for piece in pieces]
        windows = [window for owner in range(len(pieces)) for window in self._windows(owner, len(found[owner]))]
        sizes = [(window.end - window.start) * self._frame for window in windows]
        for members in equal_length_batches(sizes, self._budget):
            batch = [windows[i] for i in members]
            states = self._run(np.stack([pieces[w.owner][w.start * self._frame : w.end * self._frame] for w in batch]))
            for w, of_window in zip(batch, states, strict=True):
                found[w.owner][w.first : w.last] = of_window[w.first - w.start : w.last - w.start]
        return found

    def positions(self, frames: int) -> np.ndarray:
        """Frames since the begin of the window that each frame is taken from."""
        parts = [np.arange(w.first - w.start, w.last - w.start) for w in self._windows(0, frames)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _windows(self, owner: int, frames: int) -> Iterator[_Window]:
        """Windows of one length that cover a piece; two neighbours share OVERLAP_SECONDS or more."""
        if not frames:
            return
        size, share = min(self._window, frames), int(OVERLAP_SECONDS * self.rate)
        count = 1 if frames == size else -(-(frames - share) // (size - share))
        starts = [round(i * (frames - size) / max(count - 1, 1)) for i in range(count)]
        middles = [(a + size + b) // 2 for a, b in zip(starts, starts[1:], strict=False)]
        for start, first, last in zip(starts, [0, *middles], [*middles, frames], strict=True):
            yield _Window(owner, start, start + size, first, last)

    def _run(self, samples: np.ndarray) -> np.ndarray:
        """float32 [B, N], N a multiple of a frame -> float32 [B, N // frame, dim]."""
        torch = self._torch
        mel = self._mel(list(samples), sampling_rate=RATE, padding="do_not_pad", return_tensors="np").input_features
        states = samples.shape[1] // SAMPLES_PER_STATE
        encoder = self._encoder
        # transformers insists on all 1,500 positions; it gets an encoder that has as many as this audio.
        encoder.config.max_source_positions = states
        encoder.embed_positions = torch.nn.Embedding.from_pretrained(
            self._positions[:states].to(self._device, self._dtype)
        )
        with torch.inference_mode():
            waves = torch.from_numpy(np.ascontiguousarray(mel[..., : 2 * states], np.float32)).to(
                self._device, self._dtype
            )
            hidden = encoder(waves, output_hidden_states=True).hidden_states[self._layer]
        joined = hidden.float().unflatten(1, (-1, self._frame // SAMPLES_PER_STATE)).mean(2)
        return np.asarray(joined.cpu().numpy(), np.float32)

    def in_fp32(self) -> "WhisperExtractor":
        """The same model in fp32."""
        return WhisperExtractor(replace(self._config, precision="fp32"))


def load_encoder(model: str) -> tuple[Any, Any]:
    """(transformers' WhisperEncoder in fp32, its log-mel front end) of a folder or a hub name.

    Args:
        model: any Whisper checkpoint, whole or the encoder alone; empty: the one that comes with the repository.

    Raises:
        UserError: it is no Whisper, or a part of its encoder is missing.
    """
    import torch
    from transformers import AutoConfig, WhisperFeatureExtractor, WhisperModel
    from transformers.utils import logging

    if not model:
        if not (EMBEDDED / "model.safetensors").is_file():
            raise UserError(
                f"units.model: {EMBEDDED} is not there; it comes with a clone of the repository. Name a Whisper "
                f"checkpoint (a folder, or a hub name such as openai/whisper-tiny.en)"
            )
        model = str(EMBEDDED)
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # that an encoder alone has no decoder is no news
    try:
        config = AutoConfig.from_pretrained(model)
        if config.model_type != "whisper":
            raise UserError(f"units.model {model!r}: is a {config.model_type!r}, not a Whisper")
        whole, report = WhisperModel.from_pretrained(
            model, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"units.model {model!r}: cannot be loaded as a Whisper ({error})") from error
    finally:
        logging.set_verbosity(said)
    if missing := sorted(name for name in report["missing_keys"] if name.startswith("encoder.")):
        raise UserError(f"units.model {model!r}: its encoder lacks {len(missing)} tensors, the first is {missing[0]}")
    return whole.encoder, WhisperFeatureExtractor(feature_size=config.num_mel_bins)
