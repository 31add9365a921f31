"""A process of a study: `recbole-cdr` that ends when the study's process is killed, so that none is left behind."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def follow_parent(parent: int) -> None:
    """Has the system end this process when its parent has ended, where the system can do that (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it had ended before it could be followed
            sys.exit(1)


if __name__ == "__main__":
    # Of a study in a script's background this is ignored, and how the study ends its runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    follow_parent(int(sys.argv[1]))
    from recbole_cdr_ext.cli.main import main

    sys.exit(main(sys.argv[2:]))
