"""What Megatron-core does not take along when it is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

TAKES_WANDB = "try:\n    import wandb\nexcept ImportError:\n    wandb = None\n"
SAYS = "import megatron.core, sys; print('wandb' in sys.modules); import wandb; print('wandb' in sys.modules)"


def said(code: str, *folders: Path) -> list[str]:
    first = f"import sys; sys.path[:0] = {[str(folder) for folder in folders]}; "
    done = subprocess.run([sys.executable, "-c", first + code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(("before", "expected"), [("import megatron_lst; ", ["False", "True"]), ("", ["True", "True"])])
def test_wandb_is_left_out_of_megatron_core_alone(tmp_path: Path, before: str, expected: list[str]) -> None:
    """The second case is the control: a Megatron-core that takes what is there."""
    (tmp_path / "megatron" / "core").mkdir(parents=True)
    (tmp_path / "megatron" / "core" / "__init__.py").write_text(TAKES_WANDB)
    (tmp_path / "wandb.py").write_text("")
    assert said(before + SAYS, tmp_path) == expected


def test_the_megatron_core_that_is_here_does_without() -> None:
    pytest.importorskip("wandb")
    assert said("import megatron_lst, megatron.core; print('wandb' in sys.modules)") == ["False"]
