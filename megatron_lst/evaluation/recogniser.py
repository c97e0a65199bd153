"""Speech to text by somebody else's model: the judge of what a model says and hears (SPEC 9).

A judge is `whisper` with any Whisper checkpoint, `pocketsphinx` with its own English model, a command with `{wav}` that
prints what it hears, or the folder of a Whisper, Wav2Vec2-CTC or HuBERT-CTC model as transformers saves it.
"""

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from megatron_lst.errors import UserError
from megatron_lst.inference.vocoder import Vocoder, write_wav

RATE = 16_000
WHISPER_SECONDS, WHISPER_TOKENS = 30.0, 224
"""What Whisper hears at once, and the longest text of it, as OpenAI's own decoder has them."""
Recognise = Callable[[np.ndarray, int], str]
"""(float32 samples [n] in -1..1, samples a second) -> what is said."""


def open_judge(judge: str, model: str | None, language: str = "en", device: str = "cpu") -> Recognise:
    """A recogniser by name, command or folder.

    Args:
        judge: `whisper`, `pocketsphinx`, a command with `{wav}` (a file to read), or a folder with config.json.
        model: whisper: a folder or a hub name.
        language: what is spoken, for a multilingual Whisper; it is told, never guessed.

    Raises:
        UserError: an unknown judge, one whose parts are not installed, a model that is no Whisper, or a language that
            it does not know.
    """
    if judge == "whisper":
        if not model:
            raise UserError(
                "--judge whisper needs --judge-model: a folder, or a hub name such as openai/whisper-base "
                "(data_prep/make_whisper.py makes a folder where no hub can be reached)"
            )
        return _at_16k(_whisper(model, language, device))
    if model:
        raise UserError(f"--judge-model is for --judge whisper; the judge is {judge!r}")
    if judge == "pocketsphinx":
        if language != "en":
            raise UserError(f"--judge pocketsphinx hears English alone, the language is {language!r}")
        return _at_16k(_pocketsphinx())
    if "{wav}" in judge:
        return _command(judge)
    if (Path(judge) / "config.json").is_file():
        return _at_16k(_model(Path(judge), language, device))
    raise UserError(
        f"judge {judge!r}: expected whisper, pocketsphinx, a command with {{wav}} or a folder with config.json"
    )


def _at_16k(recognise: Callable[[np.ndarray], str]) -> Recognise:
    """Any rate for a recogniser of 16 kHz."""

    def resampled(samples: np.ndarray, rate: int) -> str:
        if rate != RATE:
            from scipy.signal import resample_poly

            samples = resample_poly(samples, RATE, rate)
        return recognise(np.asarray(samples, np.float32))

    return resampled


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


def _pocketsphinx() -> Callable[[np.ndarray], str]:
    try:
        from pocketsphinx import Decoder
    except ImportError as error:
        raise UserError(f"--judge pocketsphinx: it is not installed ({error}): pip install pocketsphinx") from None
    decoder = Decoder(samprate=RATE, loglevel="FATAL")

    def recognise(samples: np.ndarray) -> str:
        decoder.start_utt()
        decoder.process_raw((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes(), full_utt=True)
        decoder.end_utt()
        heard = decoder.hyp()
        return str(heard.hypstr) if heard is not None else ""

    return recognise


def _whisper(name: str, language: str, device: str) -> Callable[[np.ndarray], str]:
    """Greedy decoding of at most 30 s at once; longer audio is cut in quiet places."""
    from lst_prep.pieces import quiet_cuts

    try:
        import torch
        from transformers import AutoConfig, WhisperForConditionalGeneration, WhisperProcessor
    except ImportError as error:
        raise UserError(f"judge {name}: needs transformers ({error})") from None
    try:
        with _quiet_transformers():
            config = AutoConfig.from_pretrained(name)
            if config.model_type != "whisper":
                raise UserError(f"judge {name}: is a {config.model_type!r}, not a Whisper")
            processor: Any = WhisperProcessor.from_pretrained(name)
            model, report = WhisperForConditionalGeneration.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"judge {name}: cannot be loaded as a Whisper ({error})") from None
    if missing := sorted(key for key in report["missing_keys"] if key != "proj_out.weight"):
        raise UserError(f"judge {name}: {len(missing)} tensors are missing, the first is {missing[0]}")
    model = model.eval().to(device)
    options = _languages(name, model.generation_config, language)
    longest = min(WHISPER_TOKENS, config.max_target_positions // 2)

    def recognise(samples: np.ndarray) -> str:
        cuts = quiet_cuts(samples, WHISPER_SECONDS)
        said = []
        for begin, end in zip(cuts, cuts[1:], strict=False):
            heard = processor(
                samples[begin:end], sampling_rate=RATE, return_tensors="pt", return_attention_mask=True
            ).to(device)
            with torch.inference_mode(), _quiet_transformers():
                ids = model.generate(
                    heard.input_features,
                    attention_mask=heard.attention_mask,
                    max_new_tokens=longest,
                    do_sample=False,
                    num_beams=1,
                    **options,
                )
            said.append(processor.batch_decode(ids, skip_special_tokens=True)[0].strip())
        return " ".join(said).strip()

    return recognise


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Its warnings about its own defaults say nothing to the user of a judge."""
    from transformers.utils import logging

    said = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(said)


def _languages(name: str, generation: Any, language: str) -> dict[str, str]:
    """What `generate` is told of the language: nothing, where the model knows one alone."""
    known = getattr(generation, "lang_to_id", None)
    if known is None:
        if language != "en":
            raise UserError(f"judge {name}: hears English alone, the language is {language!r}")
        return {}
    if f"<|{language}|>" not in known:
        names = ", ".join(sorted(token.strip("<|>") for token in known))
        raise UserError(f"judge {name}: knows no language {language!r}; it knows {names}")
    return {"language": language, "task": "transcribe"}


def _model(folder: Path, language: str, device: str) -> Callable[[np.ndarray], str]:
    try:
        from transformers import AutoConfig, pipeline
    except ImportError as error:
        raise UserError(f"judge {folder}: needs transformers ({error})") from None
    try:
        if AutoConfig.from_pretrained(str(folder)).model_type == "whisper":
            return _whisper(str(folder), language, device)
        hear: Any = pipeline("automatic-speech-recognition", model=str(folder), device=device, chunk_length_s=30)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"judge {folder}: not a model of speech recognition ({error})") from None
    return lambda samples: str(hear({"raw": samples, "sampling_rate": RATE})["text"]).strip()
