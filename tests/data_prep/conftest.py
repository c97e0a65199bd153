"""A program that tests install and remove: a stand-in for flite, which says one pronunciation of everything."""

from collections.abc import Callable
from pathlib import Path

import pytest


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
