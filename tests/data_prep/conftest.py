"""Fixtures: a store that fails, and a stand-in for flite, which says one pronunciation of everything."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty_store import STORES, FaultyFile, FaultyStore


@pytest.fixture
def install_flite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a flite of that version the only program in PATH; with an empty version there is none."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))

    def install(version: str) -> None:
        script = programs / "flite"
        script.unlink(missing_ok=True)
        if version:
            lines = ["#!/bin/sh", 'if [ "$1" = --version ]', f"then echo '  version: {version} 2018'; exit 1"]
            script.write_text("\n".join([*lines, "fi", "echo pau hh ax l ow pau", ""]))
            script.chmod(0o755)

    return install


@pytest.fixture
def faulty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyStore]:
    """Of everything below the test's folder."""
    store = FaultyStore([tmp_path])
    real = Path.open

    def opened(self: Path, *arguments: Any, **options: Any) -> Any:
        file = real(self, *arguments, **options)
        return FaultyFile(file, store, self) if options.get("buffering") == 0 else file

    monkeypatch.setattr(Path, "open", opened)
    STORES.append(store)
    yield store
    STORES.remove(store)
