"""sizes.npz is mapped: a table of millions of documents is no memory of a process that opens it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_lst.documents.format import SIZE_COLUMNS, load_sizes, save_sizes

DOCUMENTS = 2_000_000
OPEN = """
import re, sys, types
import numpy as np
from pathlib import Path
from megatron_lst.data.order import assign_documents
from megatron_lst.data.source import JoinedSets
from megatron_lst.documents.format import SIZE_COLUMNS, load_sizes

def private():
    told = open("/proc/self/smaps_rollup").read()
    return sum(int(n) for n in re.findall(r"Private_Dirty: +([0-9]+)", told))

path, kind = Path(sys.argv[1]), sys.argv[2]
before = private()
if kind == "mapped":
    sizes = load_sizes(path)
else:
    with np.load(path) as file:
        sizes = dict(zip(SIZE_COLUMNS, np.stack([file[name] for name in SIZE_COLUMNS], axis=1).T.copy()))
first = np.arange(0, 2_000_001, 20_000)
one = types.SimpleNamespace(**sizes, shard_first=first, shard_bytes=first[1:], fingerprint="x", __len__=None)
one = type("Set", (), {**vars(one), "__len__": lambda self: 2_000_000})()
joined = JoinedSets([one])
owned = assign_documents(joined, 64, 0, "speech")
print((private() - before) * 1024 / 2_000_000, int(owned.end.sum()), joined.mean_tokens)
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sizes") / "sizes.npz"
    counts = np.arange(DOCUMENTS * len(SIZE_COLUMNS), dtype=np.int64).reshape(DOCUMENTS, -1) % 5_000
    save_sizes(path, counts)
    return path


def test_columns_are_what_numpy_reads(table: Path) -> None:
    columns = load_sizes(table)
    with np.load(table) as file:
        for name in SIZE_COLUMNS:
            np.testing.assert_array_equal(columns[name], file[name])
            assert not columns[name].flags.writeable and not columns[name].flags.owndata
    empty = table.with_name("empty.npz")
    save_sizes(empty, np.zeros((0, len(SIZE_COLUMNS)), np.int64))
    assert [len(column) for column in load_sizes(empty).values()] == [0] * len(SIZE_COLUMNS)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux tells what memory is a process's own")
def test_a_document_costs_a_process_less_than_a_byte(table: Path) -> None:
    def opened(kind: str) -> list[float]:
        told = subprocess.run(
            [sys.executable, "-c", OPEN, str(table), kind], capture_output=True, text=True, check=True
        )
        return [float(value) for value in told.stdout.split()]

    mapped, copied = opened("mapped"), opened("copied")
    assert mapped[0] < 1, f"{mapped[0]:.2f} bytes a document"
    assert copied[0] > 30, "control: read as before, a table of its own for every process"
    assert mapped[1:] == copied[1:], "the same streams own the same documents"


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    columns = {name: np.zeros(3, np.int64) for name in SIZE_COLUMNS}
    np.savez_compressed(tmp_path / "packed.npz", **columns)
    np.savez(tmp_path / "floats.npz", **{name: np.zeros(3) for name in SIZE_COLUMNS})
    (tmp_path / "text.npz").write_text("words")
    for name, said in (("packed", "compressed"), ("floats", "float64"), ("text", "not a zip")):
        with pytest.raises(ValueError, match=said):
            load_sizes(tmp_path / f"{name}.npz")
