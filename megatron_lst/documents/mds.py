"""MosaicML Streaming's MDS reader and writer, without the rest of that package.

`import streaming` runs its vision and text collections, which need torchvision and transformers. Beside a CPU build of
torch, PyPI's torchvision (a CUDA build) does not import, and then neither does `streaming` nor much of transformers.
Only the file format is needed here, so the format's modules are imported under a bare parent package that is taken
away again: nothing is stubbed, torchvision and transformers are never touched, and a later `import streaming` by
somebody else finds everything as it would have without this.

Even so those modules import torch, which costs every data worker seconds and 200 MB.  So reading is done here: a sample
is a few lines of numpy.
"""

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from megatron_lst.errors import UserError

_LOCK = threading.Lock()
_BARE = ("streaming", "streaming.base")


DECODERS: dict[str, Callable[[bytes], Any]] = {"bytes": bytes, "str": lambda data: data.decode("utf-8")}
"""The encodings that shards may use. A pickled column is not among them: reading one could run code."""


def read_sample(data: bytes, shard: dict[str, Any]) -> dict[str, Any]:
    """One sample of an MDS shard.

    Args:
        data: its bytes: the sizes (uint32) of the columns without a fixed size, then the columns.
        shard: the shard's entry in index.json.

    Raises:
        ValueError: an encoding that is not known here, or sizes that do not add up.
    """
    fixed = shard["column_sizes"]
    variable = iter(np.frombuffer(data, np.uint32, sum(size is None for size in fixed)).tolist())  # sizes in bytes
    at = 4 * sum(size is None for size in fixed)  # where the first column begins
    sample: dict[str, Any] = {}
    for name, encoding, size in zip(shard["column_names"], shard["column_encodings"], fixed, strict=True):
        if encoding not in DECODERS:
            raise ValueError(f"column {name} is encoded as {encoding!r}")
        length = size if size is not None else next(variable)
        sample[name] = DECODERS[encoding](data[at : at + length])
        at += length
    if at != len(data):
        raise ValueError(f"its columns take {at} bytes of {len(data)}")
    return sample


def decompress(data: bytes, algorithm: str) -> bytes:
    """A compressed shard's content; `algorithm` as the index names it, such as zstd:3."""
    if algorithm.startswith("zstd"):
        try:
            import zstd
        except ImportError:
            pass
        else:
            return bytes(zstd.decompress(data))
    return bytes(formats().decompress(algorithm, data))


@cache
def formats() -> SimpleNamespace:
    """Streaming's `MDSWriter` and `decompress`.

    Raises:
        UserError: mosaicml-streaming is not installed.
    """
    reader, compression = _modules("format", "compression")
    return SimpleNamespace(
        MDSWriter=reader.MDSWriter,
        decompress=compression.decompress,
    )


@cache
def cloud_downloader() -> Any:
    """Streaming's `CloudDownloader`, which knows S3, Google Cloud, Azure and others.

    Raises:
        UserError: mosaicml-streaming is not installed.
    """
    # In this order: streaming's modules import each other in a circle that only works from `format`.
    return _modules("format", "storage.download")[1].CloudDownloader


def _modules(*names: str) -> list[ModuleType]:
    full = [f"streaming.base.{name}" for name in names]
    with _LOCK:
        if "streaming" in sys.modules:
            return [importlib.import_module(name) for name in full]
        if any(name not in sys.modules for name in full):
            _import_bare(full)
        return [sys.modules[name] for name in full]


def _import_bare(modules: list[str]) -> None:
    """Import modules of streaming under bare parents; the parents are taken out of sys.modules again."""
    spec = importlib.util.find_spec("streaming")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("mosaicml-streaming is not installed; shards need it: pip install --no-deps mosaicml-streaming")
    root = Path(next(iter(spec.submodule_search_locations)))
    try:
        for name in _BARE:
            bare = ModuleType(name)
            bare.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
            bare.__spec__ = ModuleSpec(name, None, is_package=True)
            sys.modules[name] = bare
        for name in modules:
            importlib.import_module(name)
    finally:
        for name in _BARE:
            sys.modules.pop(name, None)
