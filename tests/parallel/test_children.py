"""Children of a killed process end with it; without that they stay."""

import subprocess
import sys

import psutil
import pytest

PARENT = """
import multiprocessing, os, time
from multiprocessing.managers import SyncManager
from megatron_lst.parallel import children

def sleep():
    time.sleep(600)

if __name__ == "__main__":
    guarded = {guarded}
    if guarded:
        children.forked_children_end_with_this_process()
        children.forked_children_end_with_this_process()
    forked = multiprocessing.get_context("fork").Process(target=sleep)
    forked.start()
    manager = SyncManager(ctx=multiprocessing.get_context("spawn"))
    manager.start(*((children.end_with_parent, (os.getpid(),)) if guarded else ()))
    print(forked.pid, manager._process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part of it is Linux's")
@pytest.mark.parametrize("guarded", [True, False])
def test_children_of_a_killed_process(guarded: bool, tmp_path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(guarded=guarded))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    found = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(found) == 2
    assert all(child.is_running() for child in found)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, left = psutil.wait_procs(found, timeout=10 if guarded else 1)
    for child in left:
        child.kill()
    assert bool(left) is not guarded, "control: unguarded ones stay"


def test_a_parent_that_is_gone_already_is_noticed() -> None:
    script = (
        "import sys; from megatron_lst.parallel.children import *; end_with_parent(int(sys.argv[1])); print('alive')"
    )
    for parent, alive in ((None, True), (1, False)):
        number = str(psutil.Process().pid if parent is None else parent)
        done = subprocess.run([sys.executable, "-c", script, number], capture_output=True, text=True, timeout=60)
        assert ("alive" in done.stdout) is alive
