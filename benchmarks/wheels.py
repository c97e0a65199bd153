"""Packages for a Python that lacks them, from a folder of wheels, without installing anything.

A wheel is an archive of what site-packages would hold. Those that this Python lacks are unpacked into one folder, which
goes on the path of the processes that need it.
"""

import hashlib
import os
import shutil
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from megatron_lst.errors import UserError

OF_THE_MACHINE = ("torch", "triton", "nvidia_", "torchvision", "torchaudio", "pip", "setuptools", "cuda_")
"""Never unpacked: what has to fit the driver is the machine's, or is missing."""


def unpacked(folder: Path, into: Path | None = None) -> Path:
    """The folder to put on PYTHONPATH.

    Args:
        folder: of wheels, as `make wheels` fills it.
        into: where to; None: a temporary folder that is named by its content, so that a second call finds it.

    Raises:
        UserError: no such folder, no wheel in it, or a damaged one, by name.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise UserError(f"{folder}: no wheels there; fill it on a connected machine: make wheels WHEELS={folder.name}")
    lacking = [wheel for wheel in wheels if _is_lacking(wheel)]
    if into is None:
        names = "\n".join(f"{wheel.name} {wheel.stat().st_size}" for wheel in lacking)
        into = Path(tempfile.gettempdir()) / f"megatron-lst-wheels-{hashlib.sha256(names.encode()).hexdigest()[:16]}"
    if into.is_dir():
        return into
    begun = Path(tempfile.mkdtemp(prefix=f"{into.name}.", dir=into.parent))
    try:
        for wheel in lacking:
            try:
                with zipfile.ZipFile(wheel) as archive:
                    if bad := next(
                        (n for n in archive.namelist() if Path(n).is_absolute() or ".." in Path(n).parts), None
                    ):
                        raise UserError(f"{wheel}: {bad} leads out of the wheel; fill the folder again")
                    archive.extractall(begun)
            except (zipfile.BadZipFile, EOFError) as error:
                raise UserError(f"{wheel}: damaged ({error}); fill the folder again") from None
        os.replace(begun, into)
    except BaseException:
        shutil.rmtree(begun, ignore_errors=True)
        raise
    return into


def _is_lacking(wheel: Path) -> bool:
    name = wheel.name.partition("-")[0]
    if name.lower().startswith(OF_THE_MACHINE):
        return False
    try:
        version(name.replace("_", "-"))
    except PackageNotFoundError:
        return True
    return False
