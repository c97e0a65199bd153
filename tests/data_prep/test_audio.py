"""Lengths are those of the sound, not of a header; what breaks off, or is not there, is refused."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lst_prep import endings, mpeg
from lst_prep.audio import RATE, load
from lst_prep.config import AudioConfig, ReadingConfig
from lst_prep.reading import CannotRead, Inputs
from lst_prep.recording import Recording
from lst_prep.rejection import Rejection
from tests.support.faulty_store import KINDS, SHORT, FaultyStore

SPEECH = Path(__file__).parents[2] / "data_prep" / "corpus" / "audio" / "librivox-sense-0870.ogg"
SECONDS = 7.08


def sound() -> np.ndarray:
    return soundfile.read(SPEECH, dtype="float32")[0]


def mp3(samples: np.ndarray, rate: int = 44100, header: bool = True) -> bytes:
    """Variable bit rate; without its header frame, nothing says how long it is."""
    from scipy.signal import resample_poly

    out = io.BytesIO()
    wide = resample_poly(samples, rate, RATE).clip(-1, 1)
    soundfile.write(out, wide, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.6)
    whole = out.getvalue()
    at = mpeg._first_frame(whole)
    assert at is not None
    frame = mpeg._frame(whole, at)
    assert frame is not None
    assert whole[at + 4 + frame.side :][:4] in (b"Xing", b"Info")
    return whole if header else whole[at + frame.size :]


def seconds(path: Path, start: float | None = None, end: float | None = None, **options: Any) -> float:
    return load(path, start, end, AudioConfig(), **options).seconds


def before_noise(folder: Path, name: str, header: bool, rate: int = 44100) -> Path:
    """Four seconds of noise, which takes many bits, and then speech three times: an estimate from the first frames."""
    noise = np.random.default_rng(0).normal(0, 0.15, 4 * RATE).astype(np.float32)
    path = folder / name
    path.write_bytes(mp3(np.concatenate([noise, sound(), sound(), sound()]), rate, header))
    return path


@pytest.mark.parametrize("rate", [16000, 24000, 44100])
def test_the_length_of_an_mp3_without_a_count_is_found_by_decoding(tmp_path: Path, rate: int) -> None:
    path, counted = before_noise(tmp_path, "a.mp3", False, rate), before_noise(tmp_path, "b.mp3", True, rate)
    true = 4 + 3 * len(sound()) / RATE
    assert abs(soundfile.info(path).duration - true) > 1  # control: what libsndfile says
    assert seconds(path) == pytest.approx(true, abs=0.1)
    assert seconds(counted) == pytest.approx(true, abs=0.1)
    recording = Recording(path, None, None, AudioConfig())
    assert recording.seconds == pytest.approx(true, abs=0.1)
    assert sum(map(len, recording.blocks(RATE * 3))) == len(recording)
    last = load(path, 18.2, true, AudioConfig()).samples
    assert len(last) / RATE == pytest.approx(true - 18.2, abs=0.1)
    whole = load(path, None, None, AudioConfig()).samples
    assert np.corrcoef(last[:RATE], whole[round(18.2 * RATE) :][:RATE])[0, 1] > 0.99


def test_mp3_files_laid_end_to_end_are_as_long_as_they_are(tmp_path: Path) -> None:
    one = mp3(sound())
    (tmp_path / "three.mp3").write_bytes(one * 3)
    picture = b"ID3\x03\x00\x00" + bytes([0, 6, 0, 0]) + bytes(6 << 14)
    (tmp_path / "tagged.mp3").write_bytes(picture + mp3(sound(), header=False))
    assert seconds(tmp_path / "three.mp3") == pytest.approx(3 * SECONDS, abs=0.4)
    assert seconds(tmp_path / "tagged.mp3") == pytest.approx(SECONDS, abs=0.1)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "AIFF"])
def test_files_with_an_honest_header_are_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, sound(), RATE)
    with path.open("rb") as file:
        assert mpeg.with_honest_length(file) is None
        assert endings.fault(file) is None
    assert np.array_equal(load(path, None, None, AudioConfig()).samples, soundfile.read(path, dtype="float32")[0])


@pytest.mark.parametrize("header", [True, False])
def test_times_behind_the_end_are_refused(tmp_path: Path, header: bool) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(mp3(sound(), header=header))
    soundfile.write(tmp_path / "a.wav", sound(), RATE)
    for file in (path, tmp_path / "a.wav"):
        assert seconds(file, 3.0, SECONDS + 0.3) == pytest.approx(SECONDS - 3, abs=0.1)  # rounded times
        with pytest.raises(Rejection, match="outside_audio"):
            seconds(file, 3.0, 40.0)
        with pytest.raises(Rejection, match=r"outside_audio|empty_audio"):
            seconds(file, 30.0, 40.0)
        with pytest.raises(Rejection, match="empty_audio"):
            seconds(file, 30.0)


def wav(change: Any) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, sound(), RATE, format="WAV")
    return change(bytearray(out.getvalue()))


def with_size(size: int) -> Any:
    return lambda whole: bytes(whole[:40]) + size.to_bytes(4, "little") + bytes(whole[44:])


@pytest.mark.parametrize(
    ("change", "good"),
    [
        (bytes, True),
        (with_size(0xFFFFFFFF), True),  # written to a pipe
        (lambda whole: bytes(whole) + b"LIST" + (4).to_bytes(4, "little") + b"INFO", True),
        (lambda whole: bytes(whole) + bytes(100), True),
        (lambda whole: bytes(whole[: len(whole) * 6 // 10]), False),
        (with_size(3 * 226_000), False),
        (with_size(100_000), False),
    ],
)
def test_wav_files_that_break_off_or_hold_more_than_they_say(tmp_path: Path, change: Any, good: bool) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav(change))
    if good:
        assert seconds(path) == pytest.approx(SECONDS, abs=0.03)
    else:
        with pytest.raises(Rejection, match="unreadable_audio.*header says"):
            seconds(path)


@pytest.mark.parametrize("kind", [("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")])
def test_half_a_download_is_refused(tmp_path: Path, kind: tuple[str, str]) -> None:
    path = tmp_path / "a.bin"
    soundfile.write(path, sound(), RATE, format=kind[0], subtype=kind[1])
    assert seconds(path) == pytest.approx(SECONDS, abs=0.05)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(Rejection, match="unreadable_audio"):
        seconds(path)


def test_channels_are_honoured(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([sound(), 0.1 * np.sin(np.arange(len(sound())) / 5)], 1), RATE, subtype="FLOAT")
    first = load(path, None, None, AudioConfig(), channel=0)
    assert np.allclose(first.samples, sound())
    assert first.changes == ()
    assert not np.allclose(load(path, None, None, AudioConfig()).samples, sound())  # control: the mean of both
    with pytest.raises(Rejection, match="no channel 2, it has 2"):
        load(path, None, None, AudioConfig(), channel=2)
    assert np.allclose(Recording(path, None, None, AudioConfig(), channel=0).read(0, RATE), sound()[:RATE])


@pytest.mark.parametrize("kind", [*KINDS, SHORT])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_store_that_fails_while_a_file_is_decoded(
    tmp_path: Path, faulty_store: FaultyStore, suffix: str, kind: int
) -> None:
    """Mended after a while; never a shorter or a bad file when it is not."""
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.tile(sound(), 6), RATE)
    whole = load(path, None, None, AudioConfig()).samples
    fast = ReadingConfig(attempts=3, pause_seconds=0)
    with faulty_store.working():
        load(path, None, None, AudioConfig(), Inputs(fast))
    events = len(faulty_store.seen)
    for at in range(0, events, max(events // 8, 1)):
        for times in (1, 10**9):
            faulty_store.seen = []
            faulty_store.fails = lambda number, what, _, a=at, t=times: (
                kind if a <= number < a + t and (kind != SHORT or what == "read") else None
            )
            with faulty_store.working():
                try:
                    found = load(path, None, None, AudioConfig(), Inputs(fast)).samples
                except CannotRead:
                    found = None
            assert times > 1 if found is None else np.array_equal(found, whole)
