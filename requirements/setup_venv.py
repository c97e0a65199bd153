"""Make or refresh the virtual environment that `make` uses. Returns at once when nothing has changed.

    python3 requirements/setup_venv.py .venv                     from the configured index
    python3 requirements/setup_venv.py .venv --keep              beside what this Python has: its torch stays
    python3 requirements/setup_venv.py .venv --wheels FOLDER     from a folder, without a network
    python3 requirements/setup_venv.py --fill FOLDER [--keep]    fill that folder; with --keep, without torch

Runs before anything is installed, hence only the standard library.
"""

import argparse
import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import pins

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
SETS = ("torch.txt", "train.txt", "prep.txt", "harness.txt", "dev.txt")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PIP = ("-m", "pip", "--disable-pip-version-check")


@dataclass(frozen=True)
class Source:
    """Where packages come from.

    Attributes:
        cpu_index: auto, always or never: see `index_options`.
        keep: packages of the Python that makes the environment stay visible in it, and are not replaced.
        wheels: a folder that `--fill` made, instead of an index.
    """

    cpu_index: str = "auto"
    keep: bool = False
    wheels: Path | None = None


class SetupError(Exception):
    """Something that a person has to mend; the message says how."""


def say(text: str) -> None:
    print(f"[setup] {text}", flush=True)


def fingerprint(source: Source, root: Path) -> str:
    """Changes whenever the environment has to be installed again: requirements, packaging, this folder, Python."""
    folder = root / "requirements"
    digest = hashlib.sha256(f"{root}\0{sys.version}\0{source.cpu_index}\0{source.keep}".encode())
    for path in [*sorted(folder.glob("*.txt")), *sorted(folder.glob("*.py")), root / "pyproject.toml"]:
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


def create(venv: Path, python: Path, moved: bool, keep: bool = False) -> None:
    """Make the environment unless a working one is there; one of somebody else's making is used as it is.

    Args:
        moved: it was made by this program somewhere else, so that its scripts name a Python that is not there.
        keep: see `Source`.
    """
    if python.exists() and keep and not moved:
        settings = (venv / "pyvenv.cfg").read_text().lower() if (venv / "pyvenv.cfg").exists() else ""
        if not re.search(r"include-system-site-packages *= *true", settings):
            raise SetupError(f"{venv} hides the packages of the system: remove it, or name another by VENV=...")
    if python.exists() and not moved:
        check = "import sys; sys.exit(sys.version_info < (3, 11))"
        if subprocess.run([python, "-c", check]).returncode == 0:
            return
        raise SetupError(f"{python} does not run, or is older than 3.11: remove {venv}, or name another by VENV=...")
    say(f"making {venv} with Python {sys.version.split()[0]}")
    base = getattr(sys, "_base_executable", sys.executable)  # not the environment's own, which may go
    options = [*(["--clear"] if moved else []), *(["--system-site-packages"] if keep else [])]
    for module in ("venv", "virtualenv"):
        if subprocess.run([base, "-m", module, *options, venv]).returncode == 0:
            if keep and sys.prefix != sys.base_prefix:
                # This Python is an environment itself, whose packages the new one does not see by itself.
                inside = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
                site = subprocess.run(inside, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
                Path(site, "kept.pth").write_text(sysconfig.get_path("purelib") + "\n")
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


def requirements(sets: Sequence[str]) -> list[object]:
    return [part for name in sets for part in ("-r", REQUIREMENTS / name)]


def kept(python: Path) -> tuple[list[str], str]:
    """Constraints that keep what `python` has, and its torch as a requirement.

    Raises:
        SetupError: there is no torch, or one that this project does not work with.
    """
    asked = subprocess.run([python, REQUIREMENTS / "pins.py"], stdout=subprocess.PIPE, text=True, check=True)
    lines = asked.stdout.splitlines()
    torch = next((line for line in lines if line.startswith("torch==")), None)
    oldest = re.search(r'"torch>=([0-9.]+)', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None, "pyproject.toml bounds torch"
    if torch is None:
        raise SetupError(f"--keep: {python} has no torch to keep; leave --keep (KEEP=1) out to install one")
    if pins.release(torch.removeprefix("torch==")) < pins.release(oldest[1]):
        raise SetupError(f"--keep: {torch} is here, and this project needs {oldest[1]}; leave --keep (KEEP=1) out")
    return lines, torch


def install(python: Path, source: Source) -> None:
    """Three calls of pip, each of them naming torch's version (see torch.txt)."""
    pip = [python, *PIP, "install", "--progress-bar", "off", "-q"]
    constraints, torch = REQUIREMENTS / "constraints.txt", (REQUIREMENTS / "torch.txt").read_text().split()[-1]
    if source.wheels:
        if not any(source.wheels.glob("*.whl")):
            raise SetupError(f"{source.wheels}: no wheels; fill it on a connected machine: make wheels WHEELS=FOLDER")
        index = ["--no-index", "--find-links", str(source.wheels)]
    else:
        index = index_options("never" if source.keep else source.cpu_index)
    if source.keep:
        lines, torch = kept(python)
        constraints = python.parents[1] / "kept.txt"
        constraints.write_text("\n".join(lines) + "\n")
        say(f"keeping {torch}; all pins: {constraints}")
    say("installing (minutes the first time)")
    sets = requirements([name for name in SETS if name != "torch.txt"])
    run(*pip, torch, *sets, *index, "-c", constraints)
    run(*pip, "--no-deps", "-r", REQUIREMENTS / "no-deps.txt", torch, *index)
    run(*pip, "--no-deps", "--no-build-isolation", torch, *index, "-e", ROOT)


def fill(folder: Path, source: Source) -> None:
    """Wheels of everything that `install` wants, for the Python that runs this, into `folder`.

    With `source.keep` neither torch nor what comes with it: constraints.txt names all the others, one by one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, *PIP, "wheel", "--progress-bar", "off", "-q", "-w", folder]
    say(f"filling {folder} for Python {sys.version_info[0]}.{sys.version_info[1]} (minutes)")
    if source.keep:
        run(*pip, "--no-deps", "-r", REQUIREMENTS / "constraints.txt")
    else:
        run(*pip, *requirements(SETS), *index_options(source.cpu_index), "-c", REQUIREMENTS / "constraints.txt")
    run(*pip, "--no-deps", "-r", REQUIREMENTS / "no-deps.txt")
    say(f"{len(list(folder.glob('*.whl')))} wheels in {folder}; there: make venv WHEELS={folder.name}")


def main(
    given: Sequence[str] | None = None,
    root: Path = ROOT,
    create: Callable[[Path, Path, bool, bool], None] = create,
    install: Callable[[Path, Source], None] = install,
    check_gaps: Callable[[Path], None] = check_gaps,
) -> None:
    """Bring the environment up to date.

    Args:
        given: the command line; None: this process's.
        root: the checkout whose requirements are compared with those that were installed.
        create, install, check_gaps: the three steps that call venv and pip.
    """
    parser = argparse.ArgumentParser(description="Make or refresh the virtual environment.")
    parser.add_argument("venv", nargs="?", help="its folder")
    parser.add_argument("--keep", action="store_true", help="keep the packages of this Python, its torch first of all")
    parser.add_argument("--wheels", type=Path, help="install from this folder, without a network")
    parser.add_argument("--fill", type=Path, metavar="FOLDER", help="fill a folder with wheels, and do nothing else")
    parser.add_argument(
        "--cpu-index",
        choices=("auto", "always", "never"),
        default="auto",
        help="take torch from PyTorch's CPU index; auto: where there is no NVIDIA driver and that index answers",
    )
    options = parser.parse_args(given)
    source = Source(options.cpu_index, options.keep, options.wheels and options.wheels.absolute())
    if options.fill:
        fill(options.fill.absolute(), source)
        return
    if not options.venv:
        parser.error("name the folder of the environment, or --fill FOLDER")
    venv = Path(options.venv).absolute()
    python, stamp = venv / "bin" / "python", venv / ".megatron-lst"
    want = fingerprint(source, root)
    venv.mkdir(parents=True, exist_ok=True)
    with (venv / ".megatron-lst.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two makes at once: the second waits, then finds everything done
        done, _, where = stamp.read_text().partition("\n") if stamp.exists() else ("", "", "")
        moved = bool(where) and where != str(venv)
        if python.exists() and done == want and not moved:
            return
        create(venv, python, moved, source.keep)
        stamp.write_text(f"\n{venv}")  # ours, and not ready: an interrupted installation is done again
        install(python, source)
        if not source.keep:  # the packages of the system are not all this project's
            check_gaps(python)
        stamp.write_text(f"{want}\n{venv}")
    say(f"ready: {venv}")


if __name__ == "__main__":
    try:
        main()
    except SetupError as error:
        sys.exit(f"[setup] {error}")
