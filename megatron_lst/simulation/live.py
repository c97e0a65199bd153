"""Bytes alive on the meta device."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_lst.simulation.rank import META


class Live(TorchDispatchMode):
    """Bytes of meta storages that were made within it and are alive; `peak` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._known: set[int] = set()
        self._counts = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":  # fills what is there
            return func(*args, **(kwargs or {}))
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, Tensor) or tensor.device != META or not self._counts:
                continue
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in before or key in self._known:
                continue
            self._known.add(key)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._release, key, size)
        return result

    @contextmanager
    def host(self) -> Iterator[None]:
        """What is made within it lies in the host's memory."""
        self._counts = False
        try:
            yield
        finally:
            self._counts = True

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.bytes -= size
