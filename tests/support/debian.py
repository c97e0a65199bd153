"""Programs that some tests need and Debian has: installed where that is possible, a sentence where it is not."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping


def missing_programs(packages: Mapping[str, str]) -> str | None:
    """Install what is not there. One sentence why it cannot be had here; None when all of it is there.

    Args:
        packages: program -> the Debian package that brings it.
    """
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    wanted = {program: package for program, package in packages.items() if not shutil.which(program, path=path)}
    if sys.platform != "linux" or os.geteuid() != 0:
        return f"needs root on Linux, and {', '.join(packages)}"
    if not wanted:
        return None
    if not shutil.which("apt-get"):
        return f"{', '.join(wanted)} not installed, and there is no apt-get to install them with"
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["install", "-y", "-q", "--no-install-recommends", *sorted(set(wanted.values()))]
    for command in (["update", "-q"], install):
        done = subprocess.run(["apt-get", *command], env=environment, timeout=600, capture_output=True, text=True)
        if done.returncode:
            return f"apt-get {command[0]} failed: {done.stderr.strip().splitlines()[-1:]}"
    return None
