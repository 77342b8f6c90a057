"""The leash of a child process: it ends when the `up` that started it ends, however that dies.

The child's standard input is a pipe whose other end only its parent holds. When the parent is gone
(kill -9 included) the pipe ends, and the child stops as at a SIGTERM.
"""

import os
import signal
import threading
import time
from typing import Final

VARIABLE: Final = "AGENTS_STREAM_LEASH"
STOP_LIMIT_S: Final = 60.0
_STDIN: Final = 0
_CHUNK: Final = 1024


def hold_parent() -> None:
    """Stop this process when its parent ends, if the parent asked for that; else do nothing."""
    if os.environ.pop(VARIABLE, "") == "stdin":
        threading.Thread(target=_wait_for_end, name="leash", daemon=True).start()


def _wait_for_end() -> None:
    while os.read(_STDIN, _CHUNK):
        continue
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_LIMIT_S)
    os._exit(1)
