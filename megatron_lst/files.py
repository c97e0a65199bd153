"""Small files written so that a reader sees the old content or the new, never a part; and read with care."""

import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from megatron_lst.errors import UserError


@contextmanager
def replacing(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success it is flushed to disk and takes its place.

    The temporary name is this thread's own, also where several hosts share the folder. The folder is made.

    Args:
        mode: "w" (UTF-8) or "wb".
    """
    owner = f"{socket.gethostname()}.{threading.get_native_id()}"
    temporary = path.with_name(f".{path.name}.{owner}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path, "wb") as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as file:
        file.write(text)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def create_json(path: Path, content: Any) -> bool:
    """Write JSON into a file that must not exist; of several writers exactly one gets True.

    A hard link of a finished file: unlike an exclusive open, nobody ever sees it empty, and it is atomic on NFS.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{threading.get_native_id()}")
    try:
        write_json(temporary, content)
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return _create_exclusively(path, content)  # a file system without hard links
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _create_exclusively(path: Path, content: Any) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    return True


def require_writable(folder: Path, what: str) -> None:
    """Make a folder and try it, before the work whose outcome it is for.

    Args:
        what: the option or thing that names it, for the message.

    Raises:
        UserError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".{socket.gethostname()}.{threading.get_native_id()}.try"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"{what} cannot be written to {folder} ({error.strerror}: {error.filename})") from None


@contextmanager
def with_usual_mode(path: Path) -> Iterator[None]:
    """Give a file that a library writes the mode that the umask asks for; some write 0600."""
    path.touch()
    mode = path.stat().st_mode
    yield
    path.chmod(mode)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is no file or no object in it."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
