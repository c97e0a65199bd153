"""What a save writes and what a load reads, counted: files by size, each byte hashed once and read once."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader

from megatron_lst.config.schema import Config
from megatron_lst.engines import build_engine
from megatron_lst.engines.checkpoint_files import Place, StoredShards, balanced, spread
from megatron_lst.errors import DamagedDataError
from megatron_lst.simulation.counting import Counts, counting
from megatron_lst.training.checkpoint.folders import hash_file
from tests.support.ranks import RankPool
from tests.support.single import engine_of
from tests.support.slow import with_slow
from tests.support.toy import toy_config, toy_rows

TP2_PP2 = {"parallel__tensor": 2, "parallel__pipeline": 2, "parallel__sequence": True}
TP2 = {"parallel__tensor": 2}
PP2 = {"parallel__pipeline": 2}


def save(config: Config, folder: str) -> dict[str, Any]:
    engine = build_engine(config)
    share = config.training.global_batch // engine.data_size
    engine.step(toy_rows(config, share, seed=engine.data_rank), lr=1e-3)
    entries = engine.save(Path(folder))
    engine.close()
    return entries


def saved(ranks: RankPool, folder: Path, world: int, **layout: Any) -> dict[str, Any]:
    folder.mkdir()
    entries, *others = ranks.run(save, world, toy_config(**layout), str(folder))
    assert not any(others), "the writer alone has the list"
    return entries


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.distcp"))


@pytest.mark.multiprocess
def test_every_file_is_listed_with_its_hash_and_there_is_not_one_a_rank(ranks: RankPool, tmp_path: Path) -> None:
    one = saved(ranks, tmp_path / "one", 4)
    some = saved(ranks, tmp_path / "some", 4, checkpoint__file_megabytes=1)
    parts = saved(ranks, tmp_path / "parts", 4, **TP2_PP2)
    for entries, folder in ((one, "one"), (some, "some"), (parts, "parts")):
        files = {f.name: f for f in (tmp_path / folder).iterdir()}
        assert set(files) == set(entries)
        for name, entry in entries.items():
            assert (entry["bytes"], entry["xxh3_64"]) == (files[name].stat().st_size, hash_file(files[name]))
            assert entry.get("by_shard", False) == name.endswith(".distcp")
    count = {name: len(list((tmp_path / name).glob("*.distcp"))) for name in ("one", "some", "parts")}
    assert count == {"one": 1, "some": 3, "parts": 4}, "by size, at least one for each part of the model"


def opened_in_a_save(config: Config, folder: str, old_way: bool) -> int:
    """Files of the checkpoint that this rank opens, lists or looks at while it saves."""
    engine, counts = build_engine(config), Counts()
    with counting(counts, [Path(folder)]):
        engine.save(Path(folder))
        if old_way:
            torch.distributed.barrier()
            for file in Path(folder).iterdir():
                hash_file(file)
    engine.close()
    return sum(counts.of(counts.now)[key] for key in ("opened", "listed", "stated"))


@pytest.mark.multiprocess
def test_a_rank_touches_the_files_that_it_writes(ranks: RankPool, tmp_path: Path) -> None:
    """Rank 0 its index besides; nobody lists the folder. Where each rank hashes all files, all are opened by all (the
    control)."""
    config = toy_config(checkpoint__file_megabytes=1)
    for name, old_way in (("new", False), ("old", True)):
        (tmp_path / name).mkdir()
        first, *others = ranks.run(opened_in_a_save, 4, config, str(tmp_path / name), old_way)
        files = len(list((tmp_path / name).iterdir()))
        assert files == 3 + 5
        assert (sum(others) <= 3) == (not old_way)
        assert (min(others) >= files) == old_way
        assert first > 0


def load(config: Config, folder: str, by_megatron: bool) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes of shards that this rank read, and the tensors that it has then."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    from megatron_lst.engines.sharded_checkpoint import KINDS

    engine: Any = build_engine(config, fresh=False)
    read = [0]
    if by_megatron:
        plain = FileSystemReader._slice_file

        def counted(self: FileSystemReader, file: Any, info: Any) -> Any:
            read[0] += info.length
            return plain(self, file, info)

        FileSystemReader._slice_file = counted  # type: ignore[method-assign]
        sharded = {}
        for name, parameter, spec in engine._checkpoints._parameters():
            for kind in KINDS:
                target = torch.zeros(parameter.shape)
                for place, part in engine._checkpoints._shards(kind, name, target, spec):
                    cut = [
                        (i, o // n, s // n)
                        for i, (o, n, s) in enumerate(zip(place.offset, place.shape, place.size, strict=True))
                        if n != s
                    ]
                    replica = (int(getattr(parameter, "shared", False)), 0 if cut else engine.state.tensor_rank)
                    sharded[place.key] = ShardedTensor.from_rank_offsets(
                        place.key, part, *cut, replica_id=(*replica, engine.data_rank)
                    )
        loaded = dist_checkpointing.load(sharded, folder)
        engine.close()
        return read[0], {key: loaded[key] for key in sharded}
    plain_read = StoredShards.read

    def counted_read(self: StoredShards, shard: Any) -> Any:
        read[0] += shard.length
        return plain_read(self, shard)

    StoredShards.read = counted_read  # type: ignore[method-assign]
    engine.load(Path(folder))
    engine._tensors.begin()
    found = {}
    for name, parameter, spec in engine._checkpoints._parameters():
        for kind in KINDS:
            for rank in range(engine.data_size):
                value = engine._tensors.fetch(parameter, kind, rank)
                if value is not None:
                    found.update((p.key, v.clone()) for p, v in engine._checkpoints._shards(kind, name, value, spec))
    engine.close()
    return read[0], found


LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "DP4": (4, {}),
    "TP2 DP2": (4, TP2),
    "PP2 DP2": (4, PP2),
    "TP2 PP2": (4, TP2_PP2),
    "DP2, not distributed": (2, {"engine__distributed_optimizer": False}),
}


@pytest.mark.multiprocess
@pytest.mark.parametrize("name", with_slow(LAYOUTS, "TP2 DP2", "PP2 DP2"))
def test_a_load_reads_each_byte_once(ranks: RankPool, tmp_path: Path, name: str) -> None:
    """Saved by one process and by tensor-parallel ranks. Megatron-core's own loader, each rank for itself, reads the
    same tensors from the same files, and several times as many bytes (the control)."""
    world, layout = LAYOUTS[name]
    saved(ranks, tmp_path / "one", 1)
    saved(ranks, tmp_path / "two", 2, **TP2)
    for folder in (tmp_path / "one", tmp_path / "two"):
        ours = ranks.run(load, world, toy_config(**layout), str(folder), False)
        theirs = ranks.run(load, world, toy_config(**layout), str(folder), True)
        assert sum(read for read, _ in ours) <= 1.05 * size_of(folder)
        assert max(read for read, _ in ours) <= 0.75 * size_of(folder), "ranks divide the reading"
        if folder.name == "one":  # where shards fit the layout as they are, there is less to read twice
            assert sum(read for read, _ in theirs) > 1.2 * size_of(folder)
        for (_, mine), (_, expected) in zip(ours, theirs, strict=True):
            assert set(mine) == set(expected)
            assert all(torch.equal(mine[key], expected[key]) for key in mine)


def refusal(config: Config, folder: str) -> str:
    engine = build_engine(config, fresh=False)
    try:
        engine.load(Path(folder))
    except DamagedDataError as error:
        return str(error)
    finally:
        engine.close()
    return ""


@pytest.mark.multiprocess
def test_a_flipped_bit_is_told_on_every_rank(ranks: RankPool, tmp_path: Path) -> None:
    """Whoever reads the shard; not where only sizes are asked for (the control)."""
    saved(ranks, tmp_path / "engine", 2, checkpoint__file_megabytes=1)
    file = sorted((tmp_path / "engine").glob("*.distcp"))[-1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    told = ranks.run(refusal, 2, toy_config(), str(tmp_path / "engine"))
    assert told[0] == told[1]
    assert told[0].endswith(f"cannot be read: engine/{file.name}: hash differs from what was written")
    assert ranks.run(refusal, 2, toy_config(checkpoint__verify="sizes"), str(tmp_path / "engine")) == ["", ""]


def test_a_slow_file_system_delays_the_save_and_not_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files have what the weights were when the save began. A synchronous save waits (the control)."""
    config = toy_config()
    answers, fsync = threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        assert answers.wait(60)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    with engine_of(config) as engine:
        rows = toy_rows(config, 8)
        engine.step(rows, lr=1e-3)
        engine.save(tmp_path, asynchronous=True)
        losses = [engine.step(rows, lr=1e-3).loss for _ in range(2)]
        assert not engine.finish_saves(wait=False)
        answers.set()
        assert engine.finish_saves(wait=True)
        complete = engine.seal_save()
        assert complete is not None
        assert "__0_0.distcp" in complete()
    with engine_of(config) as engine:
        engine.load(tmp_path)
        assert [engine.step(rows, lr=1e-3).loss for _ in range(2)] == losses
        answers.clear()
        (tmp_path / "again").mkdir()
        waiting = threading.Thread(target=engine.save, args=(tmp_path / "again",), daemon=True)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        answers.set()
        waiting.join(60)


def test_a_save_that_cannot_be_written_is_an_error_of_that_save(tmp_path: Path) -> None:
    with engine_of(toy_config()) as engine:
        engine.save(tmp_path / "nowhere", asynchronous=True)
        with pytest.raises(OSError, match="nowhere"):
            engine.finish_saves(wait=True)
        with pytest.raises(OSError, match="nowhere"):
            engine.seal_save()
        engine.save(tmp_path)


def test_overlaps() -> None:
    whole = Place("a", (8, 6), (0, 0), (8, 6))
    left, lower = Place("a", (8, 6), (0, 0), (8, 3)), Place("a", (8, 6), (4, 0), (4, 6))
    assert whole.overlap(left) == ((slice(0, 8), slice(0, 3)), (slice(0, 8), slice(0, 3)))
    assert left.overlap(lower) == ((slice(4, 8), slice(0, 3)), (slice(0, 4), slice(0, 3)))
    assert left.overlap(Place("a", (8, 6), (0, 3), (8, 3))) is None


def test_work_is_divided_evenly_and_the_same_everywhere() -> None:
    sizes = [7, 1, 5, 3, 3, 9, 2]
    ranks = balanced(sizes, 3)
    loads = [sum(s for s, r in zip(sizes, ranks, strict=True) if r == rank) for rank in range(3)]
    assert max(loads) <= sum(sizes) / 3 + 1
    assert balanced([1, 1], 4) == [0, 1]
    assert spread(3, 12) == [0, 4, 8]
    assert spread(2, 2) == [0, 1]
