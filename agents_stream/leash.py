"""The leash of a child process: it ends when the `up` that started it ends, however that dies.

The child's standard input is a pipe whose other end only its parent holds. When the parent is gone
(kill -9 included) the pipe ends, and the child stops as at a SIGTERM. Over the same pipe the parent
may hold a child back: it loads what it needs, and begins at the parent's first byte.
"""

import importlib
import os
import signal
import sys
import threading
import time
from typing import Final

VARIABLE: Final = "AGENTS_STREAM_LEASH"
PRELOAD: Final = "AGENTS_STREAM_PRELOAD"
STDIN: Final = "stdin"
GO: Final = b"go\n"
STOP_LIMIT_S: Final = 60.0
_DESCRIPTOR: Final = 0
_CHUNK: Final = 1024


def hold_parent() -> bool:
    """Stop this process when its parent ends, if the parent asked for that; say whether it did."""
    if os.environ.pop(VARIABLE, "") != STDIN:
        return False
    if module := os.environ.pop(PRELOAD, ""):
        importlib.import_module(module)
        if not os.read(_DESCRIPTOR, len(GO)):
            sys.exit(0)
    threading.Thread(target=_wait_for_end, name="leash", daemon=True).start()
    return True


def _wait_for_end() -> None:
    while os.read(_DESCRIPTOR, _CHUNK):
        continue
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_LIMIT_S)
    os._exit(1)
