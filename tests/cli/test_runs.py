"""`lst checkpoint`: what is there, and the user's mistakes."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from megatron_lst.cli.app import app
from megatron_lst.errors import UserError


def test_a_folder_that_is_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        CliRunner().invoke(app, ["checkpoint", "list", str(tmp_path / "nowhere")], catch_exceptions=False)


def test_a_run_without_checkpoints_is_none(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    answer = CliRunner().invoke(app, ["checkpoint", "list", str(tmp_path)], catch_exceptions=False)
    assert (answer.exit_code, answer.output) == (0, f"{tmp_path}: no complete checkpoint\n")
