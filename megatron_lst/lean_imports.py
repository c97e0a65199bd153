"""Megatron-core is imported without wandb, which its inference engine would take wherever it is installed.

On a thousand ranks that start from one file system, its 700 modules (of 4,000) are a good part of what each reads. The
rank that writes a run imports it itself, where `run.wandb.project` asks for it.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType


class _Without(MetaPathFinder):
    """Says that wandb is not there while Megatron-core's modules are executed, which all have a way without it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        """None: the other finders are asked. Raises ModuleNotFoundError, as for what is not installed."""
        spec = getattr(sys.modules.get("megatron.core"), "__spec__", None)
        if name == "wandb" and getattr(spec, "_initializing", False):
            raise ModuleNotFoundError("wandb is not imported with Megatron-core (megatron_lst.lean_imports)", name=name)


def install() -> None:
    """For this process; once is enough."""
    if not any(isinstance(finder, _Without) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Without())
