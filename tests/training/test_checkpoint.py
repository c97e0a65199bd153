"""Checkpoint folders: complete or not there, found again, verified, retained."""

from pathlib import Path

import pytest

from megatron_lst.errors import UserError
from megatron_lst.training.checkpoint import folders


def write(run: Path, step: int, content: bytes = b"weights") -> folders.Checkpoint:
    temporary = folders.begin(run, step)
    (temporary / "engine" / "model.bin").write_bytes(content)
    files = {
        f.name: {"bytes": f.stat().st_size, "xxh3_64": folders.hash_file(f)} for f in (temporary / "engine").iterdir()
    }
    return folders.finish(temporary, step, {"step": step, "cursors": {}}, "a: 1\n", files)


def test_a_finished_checkpoint_is_found_and_verifies(tmp_path: Path) -> None:
    write(tmp_path, 10)
    found = folders.newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 10
    assert found.path.name == "step-00000010"
    assert found.damaged_files() == []
    assert found.position()["step"] == 10
    assert (tmp_path / "checkpoints" / "latest").read_text().strip() == "step-00000010"


def test_an_unfinished_checkpoint_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, 10)
    temporary = folders.begin(tmp_path, 20)
    (temporary / "engine" / "model.bin").write_bytes(b"half")
    found = folders.newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 10


def test_a_folder_without_its_manifest_is_not_complete(tmp_path: Path) -> None:
    write(tmp_path, 10)
    newer = write(tmp_path, 20)
    (newer.path / folders.MANIFEST).unlink()
    told: list[str] = []
    found = folders.newest_checkpoint(tmp_path, told.append)
    assert found is not None
    assert found.step == 10
    assert "step-00000020" in told[0]
    assert "step-00000010" in told[0]


def test_latest_is_only_a_hint(tmp_path: Path) -> None:
    write(tmp_path, 10)
    (tmp_path / "checkpoints" / "latest").unlink()
    told: list[str] = []
    found = folders.newest_checkpoint(tmp_path, told.append)
    assert found is not None
    assert found.step == 10


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00garbage", b"", b"\n\n", b"step-99", b"../../etc", b"step-00000010\n"]
)
def test_whatever_is_in_latest(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, 10)
    (tmp_path / "checkpoints" / "latest").write_bytes(content)
    told: list[str] = []
    found = folders.newest_checkpoint(tmp_path, told.append)
    assert found is not None
    assert found.step == 10
    assert len(told) == (content.strip() not in (b"", b"step-00000010"))
    assert all(line.isprintable() for line in told)


@pytest.mark.parametrize("kind", ["link", "dangling", "folder"])
def test_latest_may_be_something_else_and_a_checkpoint_is_complete_all_the_same(tmp_path: Path, kind: str) -> None:
    write(tmp_path, 10)
    hint = tmp_path / "checkpoints" / "latest"
    hint.unlink()
    if kind == "folder":
        (hint / "x").mkdir(parents=True)
    else:
        hint.symlink_to("step-00000010" if kind == "link" else "nowhere")
    assert folders.newest_checkpoint(tmp_path) == folders.find_checkpoint(tmp_path, 10)
    assert write(tmp_path, 20) == folders.newest_checkpoint(tmp_path)
    assert folders.find_checkpoint(tmp_path, 10).damaged_files() == []  # nothing was written through the link


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    done = write(tmp_path, 10, b"0123456789")
    file = done.engine_folder / "model.bin"
    if damage == "flip":
        file.write_bytes(b"0123406789")
    elif damage == "truncate":
        file.write_bytes(b"01234")
    else:
        file.unlink()
    assert len(done.damaged_files()) == 1
    assert "engine/model.bin" in done.damaged_files()[0]
    # a flipped byte has the same size: only hashes see it
    assert done.damaged_files(hashes=False) == ([] if damage == "flip" else done.damaged_files())


def test_a_load_hashes_what_it_reads_and_verification_leaves_that_out(tmp_path: Path) -> None:
    done = write(tmp_path, 10, b"0123456789")
    entries = done.manifest()["files"]
    entries["engine/model.bin"]["by_shard"] = True
    for name in entries:
        content = (done.path / name).read_bytes()
        (done.path / name).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert len(done.damaged(entries, hashes=True)) == 3
    assert [line.partition(":")[0] for line in done.damaged(entries, hashes=True, loading=True)] == [
        "config.yaml",
        "position.json",
    ]
    (done.engine_folder / "model.bin").write_bytes(b"0")
    assert len(done.damaged(entries, hashes=True, loading=True)) == 3


def test_a_missing_step_names_those_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, 10)
    with pytest.raises(UserError, match="there are 10"):
        folders.find_checkpoint(tmp_path, 11)
    with pytest.raises(UserError, match="no complete checkpoint"):
        folders.find_checkpoint(tmp_path / "elsewhere")
