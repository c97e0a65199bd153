"""Worker processes: the same rows whatever their number, and no hang, leak or silence when something breaks."""

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_lst.config.load import dump_yaml
from megatron_lst.data import worker
from megatron_lst.data.loader import Loader, ThreadLoader, WorkerLoader, open_loader
from megatron_lst.documents.shards import ShardSet
from megatron_lst.errors import DamagedDataError, TrainingFault, UserError
from megatron_lst.patching.row import batch_hash
from tests.data.toy import make_config, on_disk

STEPS = 6


def hashes(config: Any, steps: int, size: int = 1, state: Any = None, start: int = 0) -> tuple[list[str], dict]:
    loaders = [open_loader(config, r, size, state, start) for r in range(size)]
    found, merged = [], dict(state or {})
    for _ in range(steps):
        parts = [next(loader) for loader in loaders]
        rows = sorted((row for part in parts for row in part.rows), key=lambda row: row.index)
        found.append(batch_hash([row.hash for row in rows]))
        for part in parts:
            merged.update(part.cursors)
    for loader in loaders:
        loader.close()
    return found, json.loads(json.dumps(merged))


@pytest.mark.multiprocess
def test_workers_and_ranks_change_nothing(shard_sets: dict[str, Path]) -> None:
    config = on_disk(make_config(), shard_sets)
    expected, _ = hashes(config, STEPS)
    for workers, size in ((1, 1), (4, 1), (2, 2), (1, 4)):
        assert hashes(on_disk(config, shard_sets, workers=workers), STEPS, size)[0] == expected
    # Stop in the middle with one layout, go on with others.
    begun, state = hashes(on_disk(config, shard_sets, workers=2), 3, 2)
    assert begun == expected[:3]
    for workers, size in ((0, 4), (2, 1)):
        assert hashes(on_disk(config, shard_sets, workers=workers), 3, size, state, 3)[0] == expected[3:]


def test_no_workers_is_a_thread(shard_sets: dict[str, Path]) -> None:
    with open_loader(on_disk(make_config(), shard_sets), 0, 1) as loader:
        assert isinstance(loader, ThreadLoader)
        assert len(next(loader).rows) == 8


@pytest.mark.multiprocess
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_stops_the_run_with_its_name(shard_sets: dict[str, Path], tmp_path: Path, workers: int) -> None:
    sets = {name: Path(shutil.copytree(path, tmp_path / name)) for name, path in shard_sets.items()}
    broken = sets["text"] / ShardSet.open(sets["text"]).shard_name(1)
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    config = on_disk(make_config(), sets, workers=workers)
    with open_loader(config, 0, 1) as loader, pytest.raises(DamagedDataError, match=broken.name):
        exhaust(loader)
    skipped = 0
    with open_loader(on_disk(config, sets, on_damage="skip"), 0, 1) as loader:
        for _ in range(20):
            for row in next(loader).rows:
                row.check(config.vocabulary)
                skipped += row.statistics.skipped_documents
    assert skipped > 0


@pytest.mark.multiprocess
@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_without_one_whole_shard_is_named_instead_of_a_stall(
    shard_sets: dict[str, Path], tmp_path: Path, workers: int
) -> None:
    """`data.on_damage: skip` looked for the next whole document for ever."""
    text = Path(shutil.copytree(shard_sets["text"], tmp_path / "text"))
    for shard in text.glob("part-*/*.mds*"):
        shard.write_bytes(bytes(shard.stat().st_size))
    config = make_config(data__on_damage="skip", data__stall_seconds=20.0)
    config = on_disk(config, {**shard_sets, "text": text}, workers=workers)
    with open_loader(config, 0, 1) as loader, pytest.raises(DamagedDataError, match=r"'text': none of .*\.mds.*hash"):
        next(loader)


@pytest.mark.multiprocess
def test_what_else_goes_wrong_comes_out_at_once_with_its_cause(shard_sets: dict[str, Path], tmp_path: Path) -> None:
    """No error of ours: the cache folder is a file."""
    (tmp_path / "cache").write_text("")
    for workers, said in ((0, r"the data thread failed: \w+: .*cache"), (1, r"data worker 0 failed:\n(?s:.*)cache")):
        config = on_disk(make_config(data__cache=str(tmp_path / "cache")), shard_sets, workers=workers)
        with open_loader(config, 0, 1) as loader, pytest.raises(RuntimeError, match=said):
            next(loader)


def test_a_worker_that_cannot_say_what_went_wrong_ends(
    shard_sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without memory: the handler of the error fails too. The loader sees the end, not silence."""

    def no_memory(*arguments: Any, **options: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(worker.traceback, "format_exc", no_memory)
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    ours, theirs = multiprocessing.Pipe()
    task = worker.Task(on_disk(make_config(), shard_sets), 0, 1, None, 0, [0])
    serving = threading.Thread(target=worker.serve, args=(task, theirs, no_memory), daemon=True)
    serving.start()
    serving.join(timeout=10)
    assert not serving.is_alive()
    assert not ours.poll()


@pytest.mark.multiprocess
def test_a_mistake_in_the_sources_comes_out_of_a_worker_as_itself(shard_sets: dict[str, Path]) -> None:
    config = on_disk(make_config(), {**shard_sets, "text": Path("/nowhere")}, workers=1)
    with open_loader(config, 0, 1) as loader, pytest.raises(UserError, match="^source '[a-z]+': .*/nowhere"):
        next(loader)


@pytest.mark.multiprocess
def test_a_killed_worker_is_reported(shard_sets: dict[str, Path]) -> None:
    with open_loader(on_disk(make_config(), shard_sets, workers=2), 0, 1) as loader:
        assert isinstance(loader, WorkerLoader)
        next(loader)
        os.kill(loader.processes[1], signal.SIGKILL)
        with pytest.raises(TrainingFault, match=r"data worker 1 .*SIGKILL"):
            exhaust(loader)


@pytest.mark.multiprocess
def test_workers_outlive_the_signals_that_a_cluster_sends(shard_sets: dict[str, Path]) -> None:
    with open_loader(on_disk(make_config(), shard_sets, workers=1), 0, 1) as loader:
        assert isinstance(loader, WorkerLoader)
        next(loader)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(loader.processes[0], number)
        exhaust(loader, 60)


@pytest.mark.multiprocess
def test_a_silent_worker_is_reported(shard_sets: dict[str, Path]) -> None:
    config = on_disk(make_config(), shard_sets, workers=1, stall_seconds=1.0)
    with open_loader(dataclasses.replace(config), 0, 1) as loader:
        assert isinstance(loader, WorkerLoader)
        os.kill(loader.processes[0], signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(TrainingFault, match="stall_seconds"):
            exhaust(loader)
        assert time.monotonic() - began < 20


@pytest.mark.multiprocess
def test_workers_end_with_a_killed_trainer_and_leave_nothing(shard_sets: dict[str, Path], tmp_path: Path) -> None:
    config = on_disk(make_config(), shard_sets, workers=2)
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    script = (
        "import sys, time\nfrom megatron_lst.config import load_config\nfrom megatron_lst.data import open_loader\n"
        "loader = open_loader(load_config(sys.argv[1]), 0, 1)\nnext(loader)\n"
        "print(*loader.processes, flush=True)\ntime.sleep(60)\n"
    )
    shared = set(os.listdir("/dev/shm"))
    trainer = subprocess.Popen(
        [sys.executable, "-c", script, str(file)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert trainer.stdout is not None
    workers = [int(pid) for pid in trainer.stdout.readline().split()]
    assert len(workers) == 2
    trainer.kill()
    trainer.wait()
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in workers)
    assert set(os.listdir("/dev/shm")) <= shared | {n for n in os.listdir("/dev/shm") if not n.startswith("000")}


@pytest.mark.multiprocess
@pytest.mark.slow
def test_kill_9_at_random_steps_and_resume_on_other_layouts(shard_sets: dict[str, Path], tmp_path: Path) -> None:
    """Ten kills, each resumed with another number of ranks and workers: every step's hash is the undisturbed one's."""
    steps = 400
    config = on_disk(make_config(), shard_sets, cache=str(tmp_path / "cache"))
    expected, _ = hashes(config, steps)
    layouts = [(1, 0), (2, 1), (4, 0), (1, 2), (2, 0)]
    rng = random.Random(7)
    shared = set(os.listdir("/dev/shm"))
    for attempt in range(11):
        ranks, workers = layouts[attempt % len(layouts)]
        file = tmp_path / "config.yaml"
        file.write_text(dump_yaml(on_disk(config, shard_sets, workers=workers)))
        command = [sys.executable, str(Path(__file__).with_name("chaos_trainer.py")), str(file), str(tmp_path)]
        trainer = subprocess.Popen(
            [*command, str(steps), str(ranks)], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        )
        if attempt == 10:
            assert trainer.wait(timeout=300) == 0
            break
        goal = _done(tmp_path) + rng.randint(1, 30)
        while _done(tmp_path) < goal and trainer.poll() is None:
            time.sleep(0.002)
        assert trainer.poll() is None, "it finished before it could be killed; raise `steps`"
        trainer.kill()
        trainer.wait()
    found = [line.split() for line in (tmp_path / "hashes.txt").read_text().splitlines()]
    assert len(found) >= steps
    assert {(int(step), value) for step, value in found} == set(enumerate(expected))
    assert not {n for n in set(os.listdir("/dev/shm")) - shared if n.startswith(("000", "lst"))}


def _done(folder: Path) -> int:
    file = folder / "hashes.txt"
    return file.read_text().count("\n") if file.exists() else 0


@pytest.mark.slow
def test_memory_stays_flat_over_epochs(shard_sets: dict[str, Path], tmp_path: Path) -> None:
    config = on_disk(make_config(), shard_sets, cache=str(tmp_path / "cache"))
    process, seen = psutil.Process(), []
    with open_loader(config, 0, 1) as loader:
        for _ in range(12):
            exhaust(loader, 50)
            seen.append(process.memory_info().rss)
    assert max(seen[6:]) - max(seen[3:6]) < 4 << 20, [s >> 20 for s in seen]


def exhaust(loader: Loader, steps: int = 200) -> None:
    for _ in range(steps):
        next(loader)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
