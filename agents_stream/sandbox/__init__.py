"""The sandbox: a real HTTP server that plays WhatsApp, a CRM and the team's agent engine.

It stands for what we do not own. It keeps what it was sent (`books`), can be told to misbehave
(`faults`), and has a chat page on which a person is the customer (`chat`). It holds everything in
memory, within named limits, and forgets it when it stops.
"""

from agents_stream.sandbox.server import Sandbox, Secrets, run_sandbox

__all__ = ["Sandbox", "Secrets", "run_sandbox"]
