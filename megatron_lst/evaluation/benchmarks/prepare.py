"""From a benchmark's texts and audio to a prepared task: tokenise, synthesise, encode (SPEC 9).

Prompt and candidates are synthesised apart and joined as speech tokens, as in the paper, so that the prompt's are the
same for every candidate.
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
from megatron_lst.evaluation.benchmarks.prepared import PreparedItem, PreparedTask, Side
from megatron_lst.evaluation.benchmarks.readers import RawPiece, RawTask

EncodeAudio = Callable[[Path], np.ndarray]
"""Audio file -> int speech ids [F]."""
Spans = list[list[int]]
AlignAudio = Callable[[Path, str, int], tuple[Spans, Spans | None]]
"""(audio file, its text, F) -> frames of each word, and of each text piece where the aligner knows them."""

PRESETS = {
    "espeak-ng": "espeak-ng -v en-us -f {text} -w {wav}",
    "flite": "flite -voice slt -f {text} -o {wav}",
}
"""Speech synthesisers by name: a command that reads the file {text} and writes the file {wav}."""


EncodeText = Callable[[str, bool], list[int]]
"""(text, continuing) -> ids without BOS and EOS; `continuing`: the text follows other text after a space."""


def choose_synthesiser(name: str | None) -> str:
    """The command of a synthesiser: a preset's name, a command of one's own, or the first preset that is installed.

    Raises:
        UserError: none is installed, or a command without {text} or {wav}.
    """
    if name is None:
        for preset, command in PRESETS.items():
            if shutil.which(preset):
                return command
        raise UserError(f"no speech synthesiser: install one of {', '.join(PRESETS)}, or give --tts COMMAND")
    command = PRESETS.get(name, name)
    if "{text}" not in command or "{wav}" not in command:
        raise UserError(f"--tts {name!r}: a command needs {{text}} (a file to read) and {{wav}} (a file to write)")
    program = shlex.split(command)[0]
    if not shutil.which(program):
        raise UserError(f"--tts: {program} is not installed")
    return command


def synthesise(command: str, text: str, wav: Path) -> None:
    """Run the synthesiser on one text. Raises UserError with its last line when it fails."""
    source = wav.with_suffix(".txt")
    source.write_text(text + "\n", encoding="utf-8")
    parts = [part.format(text=str(source), wav=str(wav)) for part in shlex.split(command)]
    done = subprocess.run(parts, capture_output=True, text=True, timeout=600, check=False)
    source.unlink()
    if done.returncode or not wav.is_file():
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
        raise UserError(f"{parts[0]} failed ({done.returncode}): {last[0]}")


def prepare(
    raw: RawTask,
    *,
    encode_text: EncodeText | None,
    encode_audio: EncodeAudio | None,
    tts: str | None,
    align_audio: AlignAudio | None = None,
    metadata: dict[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PreparedTask:
    """Prepare every item; those that fail are refused by id and the rest goes on.

    Args:
        encode_text: None leaves text out.
        encode_audio: None leaves speech out.
        align_audio: None leaves the times of words out; pieces without a text have none.
        tts: command that synthesises pieces that come without audio; None: such pieces have no speech.

    Raises:
        UserError: nothing is left.
    """
    task = PreparedTask(raw.name, [], dict(raw.refused), {**metadata, "tts": tts})

    def side(piece: RawPiece, continuing: bool, wav: Path) -> Side:
        ids, spoken, words, pieces = None, None, None, None
        if piece.text and encode_text is not None:
            ids = encode_text(piece.text, continuing)
        if encode_audio is not None and (piece.audio is not None or (tts is not None and piece.text)):
            audio = piece.audio
            if audio is None:
                assert tts is not None
                assert piece.text
                synthesise(tts, piece.text, wav)
                audio = wav
            spoken = encode_audio(audio).tolist()
            if not spoken:
                raise UserError("the audio is shorter than one speech token")
            if align_audio is not None and piece.text:
                words, pieces = align_audio(audio, piece.text, len(spoken))
        if ids is None and spoken is None:
            raise UserError("neither text nor speech could be prepared")
        return Side(ids, len(piece.text or ""), spoken, words, pieces)

    with tempfile.TemporaryDirectory() as folder:
        for number, item in enumerate(raw.items):
            try:
                prompt = side(item.prompt, False, Path(folder) / "p.wav") if item.prompt is not None else None
                candidates = tuple(side(c, prompt is not None, Path(folder) / "c.wav") for c in item.candidates)
                task.items.append(PreparedItem(item.id, prompt, candidates, item.answer))
            except UserError as error:
                task.refused[item.id] = str(error)
            progress(number + 1, len(raw.items))
    if not task.items:
        reasons = "; ".join(f"{k}: {v}" for k, v in list(task.refused.items())[:3])
        raise UserError(f"task {raw.name}: no item could be prepared ({reasons})")
    return task
