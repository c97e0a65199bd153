"""Speech to text by somebody else's model: what turns spoken responses into text that can be graded (SPEC 9).

A recogniser is a command with `{wav}` that prints what it hears, or the folder of a Whisper, Wav2Vec2-CTC or HuBERT-CTC
model as transformers saves it, read offline.
"""

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lst.errors import UserError
from megatron_lst.inference.vocoder import Vocoder, write_wav

RATE = 16_000
Recognise = Callable[[np.ndarray, int], str]
"""(float32 samples [n] in -1..1, samples a second) -> what is said."""


def open_recogniser(spec: str, device: str = "cpu") -> Recognise:
    """A recogniser by command or folder.

    Args:
        spec: a command with `{wav}` (a file to read), or a folder with config.json.

    Raises:
        UserError: the command's program is not installed, the folder holds no model of speech recognition.
    """
    if "{wav}" in spec:
        return _command(spec)
    if (Path(spec) / "config.json").is_file():
        return _model(Path(spec), device)
    raise UserError(f"recogniser {spec!r}: neither a command with {{wav}} nor a folder with config.json")


def of_speech_ids(recognise: Recognise, vocoder: Vocoder) -> Callable[[np.ndarray], str]:
    """Speech ids [F] -> text, through a vocoder; no ids say nothing."""
    return lambda ids: recognise(vocoder(ids), vocoder.rate) if len(ids) else ""


def _command(command: str) -> Recognise:
    program = shlex.split(command)[0]
    if not shutil.which(program):
        raise UserError(f"recogniser: {program} is not installed")

    def recognise(samples: np.ndarray, rate: int) -> str:
        with tempfile.TemporaryDirectory() as folder:
            wav = Path(folder) / "said.wav"
            write_wav(wav, samples, rate)
            parts = [part.replace("{wav}", str(wav)) for part in shlex.split(command)]
            done = subprocess.run(parts, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
            raise UserError(f"recogniser {program} failed ({done.returncode}): {last[0]}")
        return done.stdout.strip()

    return recognise


def _model(folder: Path, device: str) -> Recognise:
    try:
        from transformers import pipeline
    except ImportError as error:
        raise UserError(f"recogniser {folder}: needs transformers ({error})") from None
    try:
        # Half a minute at a time: that is what Whisper hears at once.
        hear: Any = pipeline("automatic-speech-recognition", model=str(folder), device=device, chunk_length_s=30)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"recogniser {folder}: not a model of speech recognition ({error})") from None

    def recognise(samples: np.ndarray, rate: int) -> str:
        if rate != RATE:
            from scipy.signal import resample_poly

            samples = resample_poly(samples, RATE, rate)
        heard = hear({"raw": np.asarray(samples, np.float32), "sampling_rate": RATE})
        return str(heard["text"]).strip()

    return recognise
