"""The codebook: k-means centres, where they came from, and their fingerprint. Never a pickle."""

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lst_prep.units.extractor import Extractor, NeuralExtractor
from megatron_lst.documents.codec import Codec
from megatron_lst.errors import UserError
from megatron_lst.files import write_bytes
from megatron_lst.vocabulary import parse_rate, rate_text

_SETTINGS = ("layer", "padding", "piece_seconds")


class Codebook:
    """Centres of one extractor's features.

    Attributes:
        centres: float32 [S, dim].
        extractor: the extractor's name; `extractor_fingerprint` its identity.
        settings: `Extractor.settings`, so that the file alone says how its units are made; empty in files of older
            versions, which means the defaults. Not part of the fingerprint.
        fingerprint: of centres and extractor together; equal units need equal fingerprints.
        rate: units a second.
        sound: float32 [S, 13] or None, the mean of the normalised MFCC of each unit's frames, for a spectral vocoder;
            not part of the fingerprint.
        position_mean: float32 [P, dim] or None, the mean of the features at each place of a window; it is taken from
            features before the nearest centre is looked for. Places beyond the last take the last.
    """

    def __init__(
        self,
        centres: np.ndarray,
        extractor: str,
        extractor_fingerprint: str,
        rate: Fraction = Fraction(25),
        sound: np.ndarray | None = None,
        position_mean: np.ndarray | None = None,
        settings: Mapping[str, float] | None = None,
    ) -> None:
        self.centres = np.ascontiguousarray(centres, np.float32)
        self.extractor, self.rate, self.sound = extractor, rate, sound
        self.extractor_fingerprint, self.settings = extractor_fingerprint, dict(settings or {})
        digest = hashlib.sha256(self.centres.tobytes())
        digest.update(f"{self.centres.shape} {extractor} {extractor_fingerprint}".encode())
        self.position_mean = position_mean
        if position_mean is not None:
            digest.update(np.ascontiguousarray(position_mean, np.float32).tobytes())
        self.fingerprint = digest.hexdigest()[:16]
        self._half_norms = 0.5 * (self.centres.astype(np.float64) ** 2).sum(1).astype(np.float32)  # [S]

    @property
    def codec(self) -> Codec:
        """What shards say of its units."""
        return Codec(self.extractor, (len(self.centres),), self.rate, self.fingerprint)

    def units(self, extractor: Extractor, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Units of pieces of audio: float32 [N_i] each, 16 kHz -> int16 [F_i] each."""
        return [self.encode(found, extractor.positions(len(found))) for found in extractor.features(pieces)]

    def encode(self, features: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """Nearest centre of each frame.

        Args:
            features: float32 [F, dim].
            positions: int [F], `Extractor.positions`.

        Returns:
            int16 [F].
        """
        if self.position_mean is not None:
            assert positions is not None, f"{self.extractor} says at which positions its features stand"
            features = without_position(features, positions, self.position_mean)
        units = np.empty(len(features), np.int16)
        for begin in range(0, len(features), 8192):
            block = features[begin : begin + 8192]
            units[begin : begin + 8192] = np.argmin(self._half_norms - block @ self.centres.T, axis=1)
        return units

    def require(self, extractor: Extractor) -> None:
        """Raises UserError when these centres belong to another extractor's features."""
        if (self.extractor, self.extractor_fingerprint) != (extractor.name, extractor.fingerprint):
            raise UserError(
                f"the codebook was fitted on {self.extractor} features ({self.extractor_fingerprint}"
                f"{_in_words(self.settings)}), the units are to be made with {extractor.name} ({extractor.fingerprint}"
                f"{_in_words(extractor.settings)})"
            )
        if self.rate != extractor.rate:
            raise UserError(
                f"the codebook is of {rate_text(self.rate)} units a second, {extractor.name} gives "
                f"{rate_text(extractor.rate)}"
            )

    def save(self, path: Path) -> None:
        """Write .safetensors, atomically."""
        about: dict[str, Any] = {
            "format": "megatron-lst codebook",
            "version": "1",
            "extractor": self.extractor,
            "extractor_fingerprint": self.extractor_fingerprint,
        }
        about |= {} if self.rate == 25 else {"rate": rate_text(self.rate)}
        about |= {"settings": self.settings} if self.settings else {}
        metadata = {"codebook": json.dumps(about)}  # one key: safetensors writes several in random order
        optional = {"sound": self.sound, "position_mean": self.position_mean}
        tensors = {"centres": self.centres} | {name: t for name, t in optional.items() if t is not None}
        write_bytes(path, save(tensors, metadata))

    @classmethod
    def load(cls, path: Path) -> "Codebook":
        """Read what `save` wrote. Raises UserError when it is something else."""
        try:
            with safe_open(path, "np") as file:
                metadata = json.loads((file.metadata() or {}).get("codebook", "{}"))
                if metadata.get("format") != "megatron-lst codebook" or metadata.get("version") != "1":
                    raise UserError(f"codebook {path}: a safetensors file, but not a codebook of version 1")
                rate = parse_rate(metadata.get("rate", 25), f"codebook {path}: rate")
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                made_by = metadata["extractor"], metadata["extractor_fingerprint"]
                optional = tensors.get("sound"), tensors.get("position_mean")
                settings = _known_settings(metadata.get("settings", {}), path)
                return cls(tensors["centres"], *made_by, rate, *optional, settings)
        except (SafetensorError, OSError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise UserError(f"codebook {path}: cannot be read ({error})") from error


def _known_settings(found: Any, path: Path) -> dict[str, float]:
    """The settings of a file. Raises UserError for one that this version does not know, or an impossible value."""
    if not isinstance(found, dict):
        raise UserError(f"codebook {path}: settings {found!r} are not a table")
    for name, value in found.items():
        if name not in _SETTINGS:
            raise UserError(
                f"codebook {path}: its features were made with the setting {name!r}, which this version does not know"
            )
        whole = name != "piece_seconds"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not value >= (not whole):
            expected = "a whole number from 0" if whole else "a number of seconds"
            raise UserError(f"codebook {path}: settings.{name} is {value!r}, expected {expected}")
    return found


def _in_words(settings: Mapping[str, float]) -> str:
    return "".join(f", {name} {value:g}" for name, value in settings.items())


def without_position(features: np.ndarray, positions: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Features less what stands for their place alone: float32 [F, dim], int [F], float32 [P, dim] -> [F, dim]."""
    return features - mean[np.minimum(positions, len(mean) - 1)]


def position_mean(features: np.ndarray, positions: np.ndarray, width: int) -> np.ndarray:
    """Mean feature at each place, over `width` places around it: what is said averages out, the place stays.

    Args:
        features: float32 [F, dim], of many pieces.
        positions: int [F].
        width: places averaged over; odd.

    Returns:
        float32 [P, dim], P = the last place + 1.
    """
    size = int(positions.max()) + 1
    count = np.bincount(positions, minlength=size).astype(np.float64)
    sums = np.zeros((size, features.shape[1]))  # [P, dim]
    np.add.at(sums, positions, features)
    ends = np.minimum(np.arange(size) + width // 2 + 1, size)  # [P], of the places around each
    begins = np.maximum(np.arange(size) - width // 2, 0)
    sums, count = (np.concatenate([np.zeros_like(c[:1]), np.cumsum(c, 0)]) for c in (sums, count))  # running sums
    return ((sums[ends] - sums[begins]) / np.maximum(count[ends] - count[begins], 1)[:, None]).astype(np.float32)


def agreement(extractor: NeuralExtractor, codebook: Codebook, pieces: Sequence[np.ndarray]) -> tuple[int, int]:
    """How many units an extractor's precision and fp32 give alike, of how many.

    Args:
        pieces: float32 [N] each, 16 kHz.
    """
    exact, mine = codebook.units(extractor.in_fp32(), pieces), codebook.units(extractor, pieces)
    return sum(int((a == b).sum()) for a, b in zip(mine, exact, strict=True)), sum(map(len, exact))


def import_codebook(path: Path, extractor: Extractor) -> Codebook:
    """Take in somebody else's centres: .safetensors of ours, .npz, .npy, or a pickled scikit-learn k-means.

    A pickle passes a loader that constructs numpy arrays and bare k-means objects and refuses everything else.

    Raises:
        UserError: not readable, not a codebook, or a pickle that wants more than that.
    """
    if path.suffix == ".safetensors":
        return Codebook.load(path)
    try:
        if path.suffix in (".npz", ".npy"):
            loaded = np.load(path, allow_pickle=False)
            centres = loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]
        else:
            centres = _centres_of_pickle(path)
    except (OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"codebook {path}: cannot be read ({error})") from error
    if centres.ndim != 2:
        raise UserError(f"codebook {path}: centres of shape {centres.shape}, expected [entries, dim]")
    return Codebook(centres, extractor.name, extractor.fingerprint, extractor.rate, settings=extractor.settings)


class _Bare:
    """Stands for any scikit-learn object while its state is read."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): dict,
}


class _RestrictedUnpickler(pickle.Unpickler):
    """Numpy arrays and scikit-learn's k-means; anything else is refused before it is constructed."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return getattr(import_module(module), name)
        if module in ("numpy.random._pickle", "numpy.random.mtrand") or module.startswith("sklearn."):
            return _Bare if name[0].isupper() else (lambda *_: _Bare())
        raise pickle.UnpicklingError(f"it wants {module}.{name}, which no k-means needs")


def _centres_of_pickle(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        model = _RestrictedUnpickler(file).load()
    centres = getattr(model, "cluster_centers_", None)
    if not isinstance(centres, np.ndarray):
        raise ValueError("no cluster_centers_ in it")
    return centres


def fit(features: np.ndarray, size: int, seed: int, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
    """MiniBatchKMeans, on one thread, so that equal input gives equal centres.

    Args:
        features: float32 [F, dim].
        size: number of centres.
        progress: called with (epoch, epochs).

    Returns:
        float32 [size, dim].

    Raises:
        UserError: fewer frames than centres.
    """
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    if len(features) < 2 * size:
        raise UserError(
            f"codebook: {len(features)} frames cannot fit {size} entries; give more audio "
            f"or a smaller units.codebook_size"
        )
    rng = np.random.default_rng(seed)
    epochs, batch = 5, 4096
    model = MiniBatchKMeans(size, batch_size=batch, n_init=1, random_state=seed, init_size=min(len(features), 6 * size))
    with threadpool_limits(limits=1):
        for epoch in range(epochs):
            order = rng.permutation(len(features))
            for begin in range(0, len(order), batch):
                rows = order[begin : begin + batch]
                if epoch == begin == 0 and len(rows) < size:  # the first call draws the centres from its rows
                    rows = order[:size]
                model.partial_fit(features[rows])
            if progress is not None:
                progress(epoch + 1, epochs)
    return np.asarray(model.cluster_centers_, np.float32)
