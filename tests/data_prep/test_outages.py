"""A store that is away for a while: no command exits 0 meanwhile with anything lost, and the same commands end with the
very bytes of an undisturbed preparation."""

import errno
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
from typer.testing import CliRunner

from lst_prep.config import (
    AlignConfig,
    CuttingConfig,
    JobConfig,
    PrepConfig,
    ReadingConfig,
    TextSource,
    UnitsConfig,
)
from lst_prep.items import faults_of_files_are_said
from lst_prep.pipeline import Preparation
from megatron_lst.cli.app import app
from megatron_lst.config.load import dump_yaml
from megatron_lst.documents.shards import ShardSet, verify
from megatron_lst.errors import LstError, UserError
from tests.support.faulty_store import KINDS, SHORT, FaultyStore

CORPUS = Path(__file__).parents[2] / "data_prep" / "corpus"
RECORDINGS = {
    "a": ("0880", "He was not an ill-disposed young man,", "train"),
    "b": ("0930", "he might even have been made amiable himself;", "heldout"),
    "c": (
        "0870",
        "And Mr. John Dashwood had then leisure to consider how much there might be prudently in his power to do for "
        "them.",
        "train",
    ),
}
STAGES = ("manifest", "cut", "codebook", "units", "align", "text", "shards")


def make_inputs(folder: Path) -> PrepConfig:
    """Three recordings, one of them held out and one so long that it is cut; five files of text."""
    store = folder / "store"
    store.mkdir(parents=True)
    lines = []
    for name, (number, text, split) in RECORDINGS.items():
        sound, rate = soundfile.read(CORPUS / "audio" / f"librivox-sense-{number}.ogg", dtype="float32")
        soundfile.write(store / f"{name}.flac", sound, rate)
        lines.append({"id": name, "audio": f"store/{name}.flac", "text": text, "split": split})
    (folder / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number in range(3):
        rows = [{"id": f"{number}-{i}", "text": f"File {number} tells of {i} gulls."} for i in range(20)]
        (store / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (store / "held.jsonl").write_text('{"text": "File 1 tells of 3 gulls."}\n{"text": "File 2 tells of 4 gulls."}\n')
    (store / "plain.txt").write_text("A story of the sea. It ends well.")
    return PrepConfig(
        manifests=(str(folder / "m.jsonl"),),
        text=(
            TextSource("web", f"{store}/[0-9].jsonl"),
            TextSource("plain", f"{store}/plain.txt"),
            TextSource("test", f"{store}/held.jsonl", split="heldout"),
        ),
        out=str(folder / "out"),
        units=UnitsConfig(codebook_size=8),
        align=AlignConfig(flite=False, pronunciations=(str(CORPUS / "pronunciations.txt"),)),
        cutting=CuttingConfig("energy", over_seconds=6.0, shortest_seconds=2.0, longest_seconds=6.0),
        reading=ReadingConfig(attempts=2, pause_seconds=0),
        jobs=JobConfig(workers=1, item_pieces=1),
    )


def command(config: PrepConfig, stage: str) -> str | None:
    """What `lst prep STAGE` does: None when it exits 0, else its message. Anything that is no LstError escapes."""
    try:
        with faults_of_files_are_said():
            getattr(Preparation(config, quiet=True), stage)()
    except LstError as error:
        return str(error)
    return None


def contents(config: PrepConfig) -> dict[str, bytes]:
    out = Path(config.out)
    names = ["codebook.safetensors", "heldout.json", "summary.json"]
    for name in ("speech", "text", "heldout-speech", "heldout-text"):
        names += [str(path.relative_to(out)) for path in (out / name).rglob("*") if path.is_file()]
    return {name: (out / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[PrepConfig, dict[str, bytes]]:
    config = make_inputs(tmp_path_factory.mktemp("calm"))
    assert [command(config, stage) for stage in STAGES] == [None] * len(STAGES)
    texts = {d.text for d in ShardSet.open(Path(config.out) / "text")}
    assert "File 1 tells of 3 gulls." not in texts  # control: there is something to leak
    assert len(texts) == 59
    return config, contents(config)


def again(calm: tuple[PrepConfig, dict[str, bytes]], folder: Path) -> PrepConfig:
    """The same inputs in the same places, with another output folder."""
    return replace(calm[0], out=str(folder / "out"))


def same(config: PrepConfig, expected: dict[str, bytes]) -> None:
    found = contents(config)
    assert sorted(found) == sorted(expected)
    assert [name for name, value in expected.items() if found[name] != value] == []
    for name in ("speech", "text", "heldout-speech", "heldout-text"):
        assert verify(Path(config.out) / name) == []


@pytest.mark.parametrize("stage", ["cut", "codebook", "units", "align"])
def test_audio_that_is_away_during_a_stage(
    calm: tuple[PrepConfig, dict[str, bytes]], tmp_path: Path, stage: str
) -> None:
    config, store = again(calm, tmp_path), Path(calm[0].manifests[0]).parent / "store"
    for earlier in STAGES[: STAGES.index(stage)]:
        assert command(config, earlier) is None
    for name in ("a", "c"):
        (store / f"{name}.flac").rename(store / f"{name}.away")
    try:
        said = [command(config, later) for later in STAGES[STAGES.index(stage) :]]
    finally:
        for name in ("a", "c"):
            (store / f"{name}.away").rename(store / f"{name}.flac")
    assert said[0] is not None
    assert ".flac" in said[0]
    assert "cannot be read now" in said[0]
    assert said[-1] is not None
    assert [command(config, later) for later in STAGES] == [None] * len(STAGES)
    same(config, calm[1])


@pytest.mark.parametrize("stage", ["manifest", "text"])
@pytest.mark.parametrize("name", ["1.jsonl", "held.jsonl", "plain.txt"])
def test_text_that_is_away_during_a_stage(
    calm: tuple[PrepConfig, dict[str, bytes]], tmp_path: Path, faulty_store: FaultyStore, stage: str, name: str
) -> None:
    config = again(calm, tmp_path)
    for earlier in STAGES[: STAGES.index(stage)]:
        assert command(config, earlier) is None
    faulty_store.watch(Path(config.manifests[0]).parent)
    faulty_store.fails = lambda _, what, path: errno.EIO if what == "open" and path.endswith(f"/{name}") else None
    with faulty_store.working():
        said = [command(config, later) for later in STAGES[STAGES.index(stage) :]]
    if any(path.endswith(f"/{name}") for what, path in faulty_store.seen if what == "open"):
        assert said[-1] is not None
        assert any(name in line for line in said if line)
    assert [command(config, later) for later in STAGES] == [None] * len(STAGES)
    same(config, calm[1])


def disturb(calm: tuple[PrepConfig, dict[str, bytes]], folder: Path, store: FaultyStore, seed: int, events: int) -> str:
    """One preparation with one fault in a random place; returns what happened, for the test's own control."""
    rng = random.Random(seed)
    config = again(calm, folder)
    first, length = rng.randrange(events), rng.choice((1, 1, 2, 5, 10**9))
    kind = rng.choice((*KINDS, SHORT, errno.ENOSPC))

    def fails(number: int, what: str, _: str) -> int | None:
        if not first <= number < first + length:
            return None
        if kind == SHORT:
            return SHORT if what == "read" else None
        return kind if what == "write" or kind != errno.ENOSPC else None

    store.seen, store.fails = [], fails
    with store.working():
        said = [command(config, stage) for stage in STAGES]
    hit = any(fails(number, what, path) is not None for number, (what, path) in enumerate(store.seen))
    if said[-1] is None:
        same(config, calm[1])
    else:
        assert [command(config, stage) for stage in STAGES] == [None] * len(STAGES), (seed, said)
        same(config, calm[1])
    shutil.rmtree(config.out)
    return "untouched" if not hit else "mended" if said[-1] is None else "failed"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seeds", [range(10), pytest.param(range(10, 210), marks=pytest.mark.slow)])
def test_faults_in_random_places(
    calm: tuple[PrepConfig, dict[str, bytes]], tmp_path: Path, faulty_store: FaultyStore, seeds: range
) -> None:
    faulty_store.watch(Path(calm[0].manifests[0]).parent)
    with faulty_store.working():
        assert [command(again(calm, tmp_path / "counted"), stage) for stage in STAGES] == [None] * len(STAGES)
    events = len(faulty_store.seen)
    found = [disturb(calm, tmp_path / str(seed), faulty_store, seed, events) for seed in seeds]
    assert found.count("failed") >= len(found) // 4, found  # control: faults do reach it
    assert "mended" in found or len(seeds) < 100, found


def test_what_is_gone_for_good_is_given_up_by_name(calm: tuple[PrepConfig, dict[str, bytes]], tmp_path: Path) -> None:
    base = make_inputs(tmp_path / "in")
    config = replace(base, cutting=CuttingConfig())
    (tmp_path / "prep.yaml").write_text(dump_yaml(config))
    (tmp_path / "in" / "store" / "a.flac").unlink()
    assert command(config, "manifest") is None
    for _ in range(2):
        assert "a.flac" in str(command(config, "codebook"))
    run = CliRunner().invoke(app, ["prep", "give-up", str(tmp_path / "prep.yaml"), "nothing-of-that-name"])
    assert isinstance(run.exception, UserError)
    assert "nothing-of-that-name" in str(run.exception)
    named = tmp_path / "in" / "store" / "a.flac"
    run = CliRunner().invoke(app, ["prep", "give-up", str(tmp_path / "prep.yaml"), str(named)])
    assert run.exit_code == 0, run.output
    assert [command(config, stage) for stage in STAGES] == [None] * len(STAGES)
    summary = json.loads((Path(config.out) / "summary.json").read_text())
    assert summary["rejected"]["given_up"] == 1
    assert summary["sets"]["speech"]["documents"] == 1


@pytest.mark.parametrize("when", ["manifest", "text"])
@pytest.mark.parametrize("name", ["1.jsonl", "plain.txt"])
def test_a_text_file_that_is_gone_for_good(tmp_path: Path, name: str, when: str) -> None:
    config = replace(make_inputs(tmp_path / "in"), manifests=(), cutting=CuttingConfig())
    for stage in STAGES[: STAGES.index(when)]:
        if stage in ("manifest", "text"):
            assert command(config, stage) is None
    if when == "manifest":  # listed, and gone before it is read
        assert "cannot be read" in str(gone_while_listed(config, name))
    else:
        (tmp_path / "in" / "store" / name).unlink()
        assert command(config, "text") is not None
    (tmp_path / "prep.yaml").write_text(dump_yaml(config))
    run = CliRunner().invoke(app, ["prep", "give-up", str(tmp_path / "prep.yaml"), f"{tmp_path}/in/store/{name}"])
    assert run.exit_code == 0, run.output
    assert [command(config, stage) for stage in ("manifest", "text", "shards")] == [None] * 3
    summary = json.loads((Path(config.out) / "summary.json").read_text())
    assert summary["rejected"]["given_up"] == 1
    assert summary["sets"]["text"]["documents"] == 59 - (19 if name == "1.jsonl" else 1)


def gone_while_listed(config: PrepConfig, name: str) -> str | None:
    """`lst prep manifest` where a file goes for good between its listing and its reading."""
    preparation = Preparation(config, quiet=True)
    (Path(config.manifests[0] if config.manifests else config.text[2].path).parent / name).unlink()
    try:
        preparation.manifest()
    except LstError as error:
        return str(error)
    return None


def test_given_up_after_its_units_were_made(calm: tuple[PrepConfig, dict[str, bytes]], tmp_path: Path) -> None:
    base = replace(make_inputs(tmp_path / "in"), cutting=CuttingConfig())
    for stage in ("manifest", "codebook", "units"):
        assert command(base, stage) is None
    (tmp_path / "in" / "store" / "a.flac").unlink()
    assert "a.flac" in str(command(base, "align"))
    config = replace(base, give_up=("a",))
    assert [command(config, stage) for stage in STAGES] == [None] * len(STAGES)
    assert json.loads((Path(config.out) / "summary.json").read_text())["rejected"]["given_up"] == 1


def test_align_refuses_a_piece_that_had_units_and_is_bad_now(tmp_path: Path) -> None:
    config = replace(make_inputs(tmp_path / "in"), cutting=CuttingConfig(), text=())
    sound = tmp_path / "in" / "store" / "a.flac"
    whole = sound.read_bytes()
    for stage in ("manifest", "codebook", "units"):
        assert command(config, stage) is None
    sound.write_bytes(b"no sound any more")
    said = command(config, "align")
    assert said is not None
    assert "its units were made" in said
    assert command(config, "shards") is not None
    sound.write_bytes(whole)
    assert [command(config, stage) for stage in STAGES] == [None] * len(STAGES)
    assert json.loads((Path(config.out) / "summary.json").read_text())["rejected"] == {}


def test_too_many_unreadable_files_stop_a_stage(tmp_path: Path) -> None:
    config = replace(make_inputs(tmp_path / "in"), cutting=CuttingConfig(), text=())
    manifest = Path(config.manifests[0])
    line = json.loads(manifest.read_text().splitlines()[0])
    gone = [{**line, "id": f"g{i}", "audio": f"store/gone-{i}.flac"} for i in range(200)]
    manifest.write_text("".join(json.dumps(one) + "\n" for one in [line, *gone]))
    config = replace(config, jobs=JobConfig(workers=1, item_pieces=10), give_up=("store/none",))
    assert command(config, "manifest") is None
    (tmp_path / "codebook").mkdir()
    whole = replace(config, give_up=tuple(one["id"] for one in gone))
    assert command(whole, "codebook") is None
    said = command(config, "units")
    assert said is not None
    assert "stage units stops" in said
    assert "reading.max_unreadable" in said
    named = (Path(config.out) / "work" / "unreadable-units.txt").read_text().splitlines()
    assert 95 <= len(named) < 120  # it did not go on to the end
    looser = replace(config, reading=ReadingConfig(1, 0, max_unreadable=1.0))
    assert "everything else is" in str(command(looser, "units"))
    assert len((Path(config.out) / "work" / "unreadable-units.txt").read_text().splitlines()) == 200
    assert command(whole, "units") is None
    assert not (Path(config.out) / "work" / "unreadable-units.txt").exists()
