"""`up --demo`: recorded conversations through the whole system, and what came of them.

`script.py` reads them, `player.py` plays them, `witness.py` notes what the log says, `verdict.py`
compares, `stage.py` makes the place and `performance.py` the order of events.
"""

from agents_stream.demo.performance import play
from agents_stream.demo.stage import plan_demo, prepare_folder

__all__ = ["plan_demo", "play", "prepare_folder"]
