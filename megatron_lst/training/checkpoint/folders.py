"""Checkpoint folders: complete or not there at all, verifiable, kept by policy (contract 4).

    RUN/checkpoints/step-00000010/          the state after step 10
        engine/                             what the engine wrote
        position.json                       step, data cursors
        config.yaml                         the run's resolved configuration
        manifest.json                       size and hash of every other file; written last, it means complete
        KEEP                                where it is there, retention leaves the checkpoint alone
    RUN/checkpoints/latest                  a hint: the name of the newest one
    RUN/checkpoints/written.json            the steps that this run wrote itself: no others are ever removed

A checkpoint is written in `step-00000010.tmp` and renamed when its manifest stands.  How model and optimizer get
into `engine/` is the engine's affair. What else lies in `checkpoints/` (copies, notes) is the user's.
"""

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from megatron_lst.errors import DamagedDataError, UserError
from megatron_lst.files import read_json, write_json, write_text

MANIFEST = "manifest.json"
HASHING_THREADS = 4
"""Files of a checkpoint that a rank hashes at a time: reading waits for the disk; hashing lets other threads run."""
KEEP = "KEEP"
_WRITTEN = "written.json"
_NAME = re.compile(r"step-(\d{8}|[1-9]\d{8,})")


def checkpoint_root(run: Path) -> Path:
    return run / "checkpoints"


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint on disk."""

    path: Path
    step: int

    @property
    def engine_folder(self) -> Path:
        return self.path / "engine"

    def is_complete(self) -> bool:
        """Whether it is still there: a deletion takes the manifest first."""
        return (self.path / MANIFEST).is_file()

    def manifest(self) -> dict[str, Any]:
        try:
            return json.loads((self.path / MANIFEST).read_text())
        except (OSError, ValueError) as error:
            raise DamagedDataError(f"{self.path / MANIFEST}: unreadable ({error})") from None

    def position(self) -> dict[str, Any]:
        """Step, data cursors and whatever else the trainer put there."""
        try:
            return json.loads((self.path / "position.json").read_text())
        except (OSError, ValueError) as error:
            raise DamagedDataError(f"{self.path / 'position.json'}: unreadable ({error})") from None

    @property
    def kept(self) -> bool:
        """It stays for good: `lst checkpoint keep`."""
        return (self.path / KEEP).exists()

    def heldout_loss(self) -> float | None:
        """Mean held-out loss of its weights; None: it was not measured at its step, or cannot be read."""
        try:
            loss = self.position().get("heldout_loss")
        except DamagedDataError:
            return None
        return float(loss) if isinstance(loss, int | float) else None

    def size(self) -> int:
        """Bytes."""
        return sum(entry["bytes"] for entry in self.manifest()["files"].values())

    def damaged_files(self, hashes: bool = True) -> list[str]:
        """One line for every file that is not what was written.

        Args:
            hashes: compare every byte, several files at a time; False: only that each file is there with its size.
        """
        return self.damaged(self.manifest()["files"], hashes)

    def damaged(self, entries: dict[str, dict[str, Any]], hashes: bool, *, loading: bool = False) -> list[str]:
        """`damaged_files` of some of the manifest's entries.

        Args:
            loading: the hashes of what the engine checks as it reads are left to it.
        """

        def look(item: tuple[str, dict[str, Any]]) -> str | None:
            name, entry = item
            return self._damage(name, entry, hashes and not (loading and entry.get("by_shard")))

        with ThreadPoolExecutor(HASHING_THREADS) as threads:
            return [problem for problem in threads.map(look, entries.items()) if problem is not None]

    def _damage(self, name: str, entry: dict[str, Any], hashes: bool) -> str | None:
        file = self.path / name
        try:
            if (size := file.stat().st_size) != entry["bytes"]:
                return f"{name}: {size} bytes, {entry['bytes']} were written"
            if hashes and hash_file(file) != entry["xxh3_64"]:
                return f"{name}: hash differs from what was written"
        except FileNotFoundError:
            return f"{name}: missing"
        except OSError as error:
            return f"{name}: cannot be read ({error.strerror})"
        return None


def hash_file(path: Path) -> str:
    digest = xxhash.xxh3_64()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def complete_checkpoints(run: Path) -> list[Checkpoint]:
    """All complete checkpoints of a run folder, oldest first."""
    found = []
    root = checkpoint_root(run)
    for path in root.iterdir() if root.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match and (path / MANIFEST).is_file():
            found.append(Checkpoint(path, int(match.group(1))))
    return sorted(found, key=lambda c: c.step)


def newest_checkpoint(run: Path, tell: Callable[[str], None] = lambda message: None) -> Checkpoint | None:
    """The newest complete checkpoint; None where there is none.

    Completeness is read from the folders; a `latest` that points elsewhere is only reported through `tell`.
    """
    found = complete_checkpoints(run)
    hint = checkpoint_root(run) / "latest"
    try:
        named = hint.read_bytes().decode(errors="replace").strip()
    except OSError:
        named = ""
    named = named if named.isprintable() else repr(named)
    newest = found[-1] if found else None
    if named and (newest is None or newest.path.name != named):
        use = f"using {newest.path.name}, the newest complete one" if newest else "there is no complete one"
        tell(f"{hint} names {named}, which is not the newest complete checkpoint; {use}")
    return newest


def find_checkpoint(run: Path, step: int | None = None) -> Checkpoint:
    """The checkpoint of a step, or the newest.

    Raises:
        UserError: there is none; says which there are.
    """
    found = complete_checkpoints(run)
    if not found:
        raise UserError(
            f"{checkpoint_root(run)}: no complete checkpoint; the run has saved none yet (checkpoint.every)"
        )
    if step is None:
        return found[-1]
    for checkpoint in found:
        if checkpoint.step == step:
            return checkpoint
    raise UserError(f"{run}: no complete checkpoint of step {step}; there are {', '.join(str(c.step) for c in found)}")


def begin(run: Path, step: int) -> Path:
    """Make the empty temporary folder of a checkpoint, with `engine/` in it (one rank does this)."""
    temporary = checkpoint_root(run) / f"{folder_name(step)}.tmp"
    if temporary.exists():
        shutil.rmtree(temporary)
    (temporary / "engine").mkdir(parents=True)
    return temporary


def finish(
    temporary: Path, step: int, position: dict[str, Any], config_yaml: str, engine_files: dict[str, dict[str, Any]]
) -> Checkpoint:
    """Write the trainer's own files and the manifest, rename, point `latest` to it (one rank does this).

    Args:
        engine_files: the manifest's entry of each file in `engine/`, by its name.
    """
    write_json(temporary / "position.json", position)
    write_text(temporary / "config.yaml", config_yaml)
    files = {f"engine/{name}": entry for name, entry in engine_files.items()}
    for name in ("position.json", "config.yaml"):
        files[name] = {"bytes": (temporary / name).stat().st_size, "xxh3_64": hash_file(temporary / name)}
    write_json(temporary / MANIFEST, {"format": 1, "step": step, "files": dict(sorted(files.items()))})
    final = temporary.with_name(folder_name(step))
    note_written(final.parent.parent, written_steps(final.parent.parent) | {step})
    if (final / KEEP).exists():
        final.rename(_free_name(final))
    elif final.exists():  # the same step saved again, as after a rollback: the newer one is what continues
        shutil.rmtree(final)
    temporary.rename(final)
    _point_to(final)
    return Checkpoint(final, step)


def _point_to(newest: Path) -> None:
    with contextlib.suppress(OSError):  # a hint: nothing depends on it
        write_text(newest.parent / "latest", newest.name + "\n")


def _free_name(folder: Path) -> Path:
    """Where a kept checkpoint goes whose step is saved again."""
    return next(p for i in itertools.count(1) if not (p := folder.with_name(f"{folder.name}.kept-{i}")).exists())


def written_steps(run: Path) -> set[int]:
    """Steps whose checkpoints this run wrote itself, by its own record. A run of an earlier version has no record yet:
    there it is every complete checkpoint whose name is its step."""
    record = checkpoint_root(run) / _WRITTEN
    if not record.exists():
        return {c.step for c in complete_checkpoints(run) if (read_json(c.path / MANIFEST) or {}).get("step") == c.step}
    steps = (read_json(record) or {}).get("steps")
    return {step for step in steps if isinstance(step, int)} if isinstance(steps, list) else set()


def note_written(run: Path, steps: set[int]) -> None:
    write_json(checkpoint_root(run) / _WRITTEN, {"steps": sorted(steps)})


def discard(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
