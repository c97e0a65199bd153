"""Decoding beside the model: the same bytes, rejections and counts with any number of threads; memory is bounded."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lst_prep import audio, stages
from lst_prep.config import JobConfig, PrepConfig, ReadingConfig, UnitsConfig
from lst_prep.dealing import Dealing
from lst_prep.decoding import Decoder
from lst_prep.items import AheadWork, Receipts, Stage, do_item
from lst_prep.loading import Rejections
from lst_prep.pipeline import Preparation
from lst_prep.reading import CannotRead
from megatron_lst.documents.heldout import HeldOut

PIECES = 9


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of files of 1 s; the sixth is silent."""
    folder = tmp_path_factory.mktemp("sounds")
    draws = np.random.default_rng(0)
    rows = []
    for number in range(PIECES):
        samples = draws.normal(size=22050) * (0.1 if number != 5 else 0)
        soundfile.write(folder / f"{number}.ogg", samples, 22050, format="OGG", subtype="VORBIS")
        rows.append({"id": f"p{number}", "audio": f"{number}.ogg", "text": "A word.", "source": "s"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def prepared(sounds: Path, out: Path, threads: int, **reading: Any) -> Preparation:
    """Items of three pieces, up to the codebook."""
    found = Preparation(
        PrepConfig(
            manifests=(str(sounds / "manifest.jsonl"),),
            out=str(out),
            units=UnitsConfig(codebook_size=8, fit_frames=60),
            jobs=JobConfig(workers=1, item_pieces=3, decode_threads=threads),
            reading=ReadingConfig(pause_seconds=0.0, **reading),
        ),
        quiet=True,
    )
    found.manifest()
    found.codebook()
    return found


def decoding() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "decode"]


def test_bytes_and_receipts_are_those_of_one_piece_after_the_other(sounds: Path, tmp_path: Path) -> None:
    made = {}
    for threads in (0, 1, 4):
        out = tmp_path / str(threads)
        prepared(sounds, out, threads).units()
        made[threads] = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.*")) if p.is_file()}
        assert not decoding()
    assert made[1] == made[0] and made[4] == made[0]
    receipt = json.loads(made[0]["work/units/receipts/0000/0000001.json"])["result"]
    assert [line["reason"] for line in receipt["rejections"]] == ["silent_audio"] and receipt["files_read"] == 3
    assert not any("seconds" in key for key in receipt if key != "audio_seconds")


@pytest.mark.parametrize("threads", [0, 4])
def test_a_file_in_the_middle_that_cannot_be_read(
    sounds: Path, tmp_path: Path, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for, the one behind it is not; both are named, and the items around it are done."""
    found = prepared(sounds, tmp_path, threads, attempts=4)
    real, opened, lost = Path.open, list[str](), ("3.ogg", "5.ogg")

    def away(self: Path, *arguments: Any, **options: Any) -> Any:
        if self.name in lost:
            opened.append(f"{self.name} {threading.current_thread().name == 'decode'}")
            raise OSError(5, "Input/output error", str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", away)
    function = stages.units_factory(found.config)
    receipts = Receipts(found.layout.work, "units", found.plan)
    said = [do_item(function, receipts, item, item + 1 if item < 2 else None) for item in range(3)]
    assert [kind for kind, _ in said] == ["done", "unread", "done"]
    files, tried = said[1][1]
    assert [Path(name).name for name in files] == list(lost) and tried == 3
    assert [opened.count(f"{name} False") for name in lost] == [4, 1]
    assert all(opened.count(f"{name} True") <= 1 for name in lost)
    assert not decoding()


def test_what_goes_wrong_in_a_thread_reaches_the_item(
    sounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepared(sounds, tmp_path, 3)
    real = audio.load

    def load(path: Path, *arguments: Any) -> audio.Audio:
        if path.name == "1.ogg":
            assert threading.current_thread().name == "decode"
            raise MemoryError("no more")
        return real(path, *arguments)

    monkeypatch.setattr(audio, "load", load)
    function = stages.units_factory(found.config)
    with pytest.raises(MemoryError, match="no more"):
        function(0)
    assert not decoding()
    assert function(1)["pieces"] == 2


def test_no_more_waits_than_memory_is_for(sounds: Path, tmp_path: Path) -> None:
    """Two threads, and 2 s that may wait, and a second for each thread on top. Without the bound everything does."""
    found = prepared(sounds, tmp_path, 0)
    inputs = found.layout.inputs(found.config)

    def waiting(seconds: float, enough: int) -> int:
        decoder = Decoder(found.layout, found.config, HeldOut(), 2, seconds=seconds)
        decoder.expect(2)
        next(decoder.pieces(0, Rejections(), inputs))
        deadline = time.monotonic() + 5
        while sum(ahead.ended for ahead in decoder._begun) < enough and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        count = sum(ahead.ended for ahead in decoder._begun)
        decoder.close()
        assert not decoding()
        return count

    assert 2 <= waiting(2.0, 2) <= 3
    assert waiting(1e9, 5) == 5


def test_the_next_item_is_decoded_while_the_model_computes(sounds: Path, tmp_path: Path) -> None:
    found = prepared(sounds, tmp_path, 1)
    decoder = Decoder(found.layout, found.config, HeldOut(), 1)
    inputs = found.layout.inputs(found.config)
    decoder.expect(2)
    assert len(list(decoder.pieces(0, Rejections(), inputs))) == 3
    decoder.end(0)
    deadline = time.monotonic() + 5
    while [ahead.ended for ahead in decoder._begun] != [True] * 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert {ahead.item for ahead in decoder._begun} == {2} and inputs.tried == 3
    assert len(list(decoder.pieces(2, Rejections(), inputs))) == 3
    decoder.end(2)
    assert not decoding() and inputs.tried == 6


def test_an_item_is_given_ahead_and_not_blamed_for_its_neighbour(tmp_path: Path) -> None:
    def dealing(attempts: int = 3, ahead: bool = True) -> Dealing:
        stage = Stage("units", 6, stages.units_factory, ahead=ahead)
        return Dealing(stage, Receipts(tmp_path, "units", "p"), range(6), attempts, places=2)

    assert dealing(ahead=False).next() == (0, None) and dealing(attempts=1).next() == (0, None)
    dealt = dealing()
    assert dealt.next() == (0, 1) and dealt.next() == (2, 3)
    dealt.died(0, "killed", 1)
    assert dealt.next() == (1, None)  # alone
    assert dealt.next(3) == (3, 4) and dealt.next(4) == (4, 5)
    assert dealt.next(5) == (5, None) and dealt.next() == (0, None)  # it is tried alone
    assert dealt.next() == (None, None)


def test_the_last_items_go_to_whoever_is_free(tmp_path: Path) -> None:
    stage = Stage("units", 3, stages.units_factory, ahead=True)
    dealt = Dealing(stage, Receipts(tmp_path, "units", "p"), range(3), 3, places=2)
    assert [dealt.next(), dealt.next(1), dealt.next()] == [(0, 1), (1, None), (2, None)]


def test_unread_is_no_error_of_the_thread(sounds: Path, tmp_path: Path) -> None:
    found = prepared(sounds, tmp_path, 2)
    inputs = found.layout.inputs(found.config)
    other = inputs.without_patience()
    with pytest.raises(CannotRead):
        other.open(tmp_path / "nowhere")
    assert (inputs.tried, other.tried) == (0, 1)
    assert isinstance(stages.units_factory(found.config), AheadWork)
