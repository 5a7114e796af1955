"""A process that does not outlive the one that started it, and the same as a way to start another program.

python -m suite.lifeline PROGRAM ARGUMENTS        SIGTERM when the parent dies
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def die_with_the_parent(signal_number: int) -> None:
    """Asks Linux to end this process when its parent dies, even by SIGKILL, so that none is left behind."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal_number)


if __name__ == "__main__":
    # What is asked of Linux here outlives the change of program.
    die_with_the_parent(signal.SIGTERM)
    os.execvp(sys.argv[1], sys.argv[1:])
