"""How the process of a command ends."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End the process with this exit code, whatever Ray's threads do meanwhile.

    They still run while Python and the C library are taken apart, and one that then touches what is gone ends the
    process by a segmentation fault: exit code 139, whatever the command's was. So where Ray's library was loaded, Ray
    is shut down, what ``atexit`` was told is done, and the process ends without being taken apart.
    """
    if "ray" not in sys.modules:
        sys.exit(code)
    from clusters import local

    for end in (local.stop, atexit._run_exitfuncs):
        with contextlib.suppress(BaseException):  # a second Ctrl-C cuts one short, and the code stays
            end()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):  # nobody may be reading any more
            stream.flush()
    os._exit(code)
