"""Child processes that end with the process that started them, however it ends.

A rank that is killed cannot end its children. Those that Megatron starts while it writes a checkpoint hold hundreds of
megabytes each, and a node that restarts its ranks again and again would fill up with them.
"""

import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1
_forking: dict[str, int] = {}


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (Linux; elsewhere nothing happens).

    Args:
        parent: process number of the parent; one that is gone already ends this process now.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def forked_children_end_with_this_process() -> None:
    """From now on, what this process's main thread forks ends with it. Doing it again changes nothing.

    Other threads' children are left alone: the kernel's promise is for the thread, which may end long before.
    """
    if _forking:
        return
    _forking["parent"] = 0

    def before() -> None:
        main = threading.current_thread() is threading.main_thread()
        _forking["parent"] = os.getpid() if main else 0

    def in_child() -> None:
        if _forking["parent"]:
            end_with_parent(_forking["parent"])

    os.register_at_fork(before=before, after_in_child=in_child)
