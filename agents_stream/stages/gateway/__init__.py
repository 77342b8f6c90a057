"""The gateway: performs tool commands over HTTP, and tells the engine what happened.

A process of its own, so that slow HTTP never delays a timer. Read `worker.py` for what it is made
of, `performer.py` for the steps of one attempt, `memory.py` for why none is performed twice.
"""

from agents_stream.stages.gateway.worker import run_gateway

__all__ = ["run_gateway"]
