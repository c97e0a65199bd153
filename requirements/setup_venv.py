"""Make or refresh the virtual environment that `make` uses. Returns at once when nothing has changed.

    python3 requirements/setup_venv.py .venv

Runs before anything is installed, hence only the standard library.
"""

import argparse
import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
SETS = ("torch.txt", "train.txt", "prep.txt", "harness.txt", "dev.txt")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


class SetupError(Exception):
    """Something that a person has to mend; the message says how."""


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def fingerprint(cpu_index: str, root: Path) -> str:
    """Changes whenever the environment has to be installed again: requirements, packaging, this folder, Python."""
    folder = root / "requirements"
    digest = hashlib.sha256(f"{root}\0{sys.version}\0{cpu_index}".encode())
    for path in [*sorted(folder.glob("*.txt")), folder / "setup_venv.py", root / "pyproject.toml"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def index_options(choice: str) -> list[str]:
    """Options that make pip prefer a CPU build of torch where a CUDA build would be of no use.

    PyPI's torch for Linux is a CUDA build of several GB.  Without an NVIDIA driver the CPU index is added, if it
    answers within seconds (behind a mirror it often does not, and pip would spend minutes on retries).
    """
    if choice == "never" or (choice == "auto" and (shutil.which("nvidia-smi") or not sys.platform.startswith("linux"))):
        return []
    if choice == "auto":
        try:
            with urllib.request.urlopen(f"{CPU_INDEX}/torch/", timeout=5):
                pass
        except OSError as error:
            say(f"PyTorch's CPU index does not answer ({error}); taking torch from the configured index")
            return []
    return ["--extra-index-url", CPU_INDEX]


def run(*command: object) -> None:
    words = [str(word) for word in command]
    if subprocess.run(words, cwd=ROOT).returncode != 0:
        raise SetupError(f"failed: {' '.join(words)}")


def create(venv: Path, python: Path, moved: bool) -> None:
    """Make the environment unless a working one is there; one of somebody else's making is used as it is.

    Args:
        moved: it was made by this program somewhere else, so that its scripts name a Python that is not there.
    """
    if python.exists() and not moved:
        check = "import sys; sys.exit(sys.version_info < (3, 11))"
        if subprocess.run([python, "-c", check]).returncode == 0:
            return
        raise SetupError(f"{python} does not run, or is older than 3.11: remove {venv}, or name another by VENV=...")
    say(f"making {venv} with Python {sys.version.split()[0]}")
    base = getattr(sys, "_base_executable", sys.executable)  # not the environment's own, which may go
    for module in ("venv", "virtualenv"):
        if subprocess.run([base, "-m", module, *(["--clear"] if moved else []), venv]).returncode == 0:
            return
    raise SetupError("cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv")


def unexpected_gaps(pip_check: str, expected: set[str]) -> list[str]:
    """Lines of `pip check` that tell of a misfit other than the known ones of mosaicml-streaming."""
    lines = [line for line in pip_check.splitlines() if re.search(r" requires | has requirement ", line)]
    known = {f"mosaicml-streaming {name}" for name in expected}
    found = [(re.match(r"(\S+) \S+ (?:requires|has requirement) ([A-Za-z0-9._-]+)", line), line) for line in lines]
    return [line for match, line in found if not match or f"{match[1]} {match[2]}".lower() not in known]


def check_gaps(python: Path) -> None:
    listed = (REQUIREMENTS / "expected-gaps.txt").read_text().splitlines()
    expected = {line.strip().lower() for line in listed if line.strip() and not line.startswith("#")}
    answer = subprocess.run([python, "-m", "pip", "check"], stdout=subprocess.PIPE, text=True)
    if unexpected := unexpected_gaps(answer.stdout, expected):
        raise SetupError("packages do not fit together:\n  " + "\n  ".join(unexpected))


def install(python: Path, index: list[str]) -> None:
    """Three calls of pip, each of them naming torch's version (see torch.txt)."""
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off", "-q"]
    torch = ["-r", REQUIREMENTS / "torch.txt", *index]
    say("installing (minutes the first time)")
    sets = [part for name in SETS for part in ("-r", REQUIREMENTS / name)]
    run(*pip, *sets, *index, "-c", REQUIREMENTS / "constraints.txt")
    run(*pip, "--no-deps", "-r", REQUIREMENTS / "no-deps.txt", *torch)
    run(*pip, "--no-deps", "--no-build-isolation", *torch, "-e", ROOT)


def main(
    given: Sequence[str] | None = None,
    root: Path = ROOT,
    create: Callable[[Path, Path, bool], None] = create,
    install: Callable[[Path, list[str]], None] = install,
    check_gaps: Callable[[Path], None] = check_gaps,
) -> None:
    """Bring the environment up to date.

    Args:
        given: the command line; None: this process's.
        root: the checkout whose requirements are compared with those that were installed.
        create, install, check_gaps: the three steps that call venv and pip.
    """
    parser = argparse.ArgumentParser(description="Make or refresh the virtual environment.")
    parser.add_argument("venv", help="its folder")
    parser.add_argument(
        "--cpu-index",
        choices=("auto", "always", "never"),
        default="auto",
        help="take torch from PyTorch's CPU index; auto: where there is no NVIDIA driver and that index answers",
    )
    options = parser.parse_args(given)
    venv = Path(options.venv).absolute()
    python, stamp = venv / "bin" / "python", venv / ".megatron-lst"
    want = fingerprint(options.cpu_index, root)
    venv.mkdir(parents=True, exist_ok=True)
    with (venv / ".megatron-lst.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once: the second waits, then finds everything done
        done, _, where = stamp.read_text().partition("\n") if stamp.exists() else ("", "", "")
        moved = bool(where) and where != str(venv)
        if python.exists() and done == want and not moved:
            return
        create(venv, python, moved)
        stamp.write_text(f"\n{venv}")  # ours, and not ready: an interrupted installation is done again
        install(python, index_options(options.cpu_index))
        check_gaps(python)
        stamp.write_text(f"{want}\n{venv}")
    say(f"ready: {venv}")


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"[setup] {error}")
