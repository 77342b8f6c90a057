"""`agents-stream up`: starts everything, keeps it alive, stops it, and goes on where it was."""

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from agents_stream.kafka import broker_process, embedded
from tests.conftest import free_port
from tests.kafka.up_process import Up, until

pytestmark = pytest.mark.kafka

PENDING = "Quedamos pendientes! Cuando tengas un momento, me cuentas para ayudarte con tu pedido."
REMINDER = "Hola! Sigues interesado en tu pedido?"


def ask_for_data(up: Up, session_id: str) -> None:
    """Start a session, and the wait for its customer's data."""
    ids = {"sessionId": session_id, "workspaceId": "w", "conversationId": f"chat-{session_id}"}
    up.send("agent/session.started", **ids, agentId="a", contactId="k", mode="m")
    up.send("agent/collecting_data.started", **ids)


def remind(up: Up, session_id: str) -> None:
    """Have a reminder sent."""
    ids = {"sessionId": session_id, "workspaceId": "w", "conversationId": f"chat-{session_id}"}
    up.send("agent/proactive.send", **ids, messageType="reminder")


def test_up_runs_everything_and_goes_on_where_it_was(tmp_path: Path) -> None:
    """A timer pending at a clean stop fires after the next start, once (G3); nothing stays behind.

    `up` is ready when it says so: console, chat and books answer, the tools are called, and the
    feed tells what happens without anybody's words.
    """
    with Up(tmp_path, variables={"AGENTS_STREAM_DATA_REPLY_TIMEOUT": "4s"}) as up:
        up.until_ready()
        for url in (f"{up.web}/readyz", f"{up.web}/", f"{up.sandbox}/chat", f"{up.sandbox}/books"):
            assert up.answers(url), url
            assert url.removesuffix("readyz") in up.output
        remind(up, "s-1")
        until(lambda: up.messages() == [REMINDER], "the reminder is sent")
        ask_for_data(up, "s-2")
        up.until_said("data_collection.reply armed: due in 4.0 s")
        pids = up.children()
        assert set(pids) == {"worker", "gateway", "sandbox"}
        assert up.stop() == 0
        assert up.is_over()
        assert not broker_process.is_alive(embedded.files_of(up.settings))
        assert REMINDER not in up.output

        up.start()
        up.until_ready(starts=2)
        until(lambda: up.messages() == [PENDING], "the timer fires after the restart")
        up.until_said("data_collection: timeout / sent_pending_message")
        up.until_said("data_collection.reply fires, ")
        assert up.stop(signal.SIGINT) == 0
        assert up.is_over()


def test_what_dies_is_started_again(tmp_path: Path) -> None:
    """Worker, gateway, sandbox and broker come back after a kill -9, and the work goes on (G11)."""
    with Up(tmp_path) as up:
        up.until_ready()
        for pid in up.children().values():
            os.kill(pid, signal.SIGKILL)
        for name in ("worker", "gateway", "sandbox"):
            up.until_said(f"{name} died (killed by SIGKILL); starting it again in 0.5 s")
        until(lambda: up.answers(f"{up.web}/readyz"), "the worker is back")
        remind(up, "s-1")
        until(lambda: up.messages() == [REMINDER], "the reminder is sent")

        os.kill(broker_process.pid_of(embedded.files_of(up.settings)), signal.SIGKILL)
        up.until_said("the broker died (its process is gone); starting it again in 0.5 s")
        up.until_said("the broker is back, with all its data")

        def sends_again() -> bool:
            if not up.answers(f"{up.web}/readyz"):
                return False
            if len(up.messages()) == 1:
                remind(up, "s-2")
                time.sleep(1)
            return len(up.messages()) > 1

        until(sends_again, "the reminder is sent after the broker's death")
        assert up.stop() == 0


def test_a_killed_up_takes_its_children_along(tmp_path: Path) -> None:
    """After a kill -9 of `up` itself the next one waits for its children and takes over."""
    with Up(tmp_path) as up:
        up.until_ready()
        pids = up.children().values()
        assert up.stop(signal.SIGKILL) == -signal.SIGKILL
        up.start()
        up.until_ready(starts=2)
        assert not set(pids) & set(up.children().values())
        other = Up(tmp_path, kafka_port=up.kafka_port)
        refused = subprocess.run(
            other.command, env=other.environment, capture_output=True, text=True, check=False
        )
        assert refused.returncode == 1
        assert re.search(r"`agents-stream up` runs already for .* \(process \d+\)", refused.stderr)
        assert up.stop() == 0
        assert not broker_process.is_alive(embedded.files_of(up.settings))


def test_a_second_signal_ends_everything_at_once(tmp_path: Path) -> None:
    """Who presses Ctrl-C twice wants no clean stop; no process survives that either."""
    with Up(tmp_path) as up:
        up.until_ready()
        assert up.process is not None
        os.kill(up.children()["worker"], signal.SIGSTOP)
        up.process.send_signal(signal.SIGINT)
        up.until_said("stopping (SIGINT)")
        assert up.stop(signal.SIGINT) == 1
        until(up.is_over, "the children are gone", limit_s=5)
        assert not broker_process.is_alive(embedded.files_of(up.settings))


def test_a_stop_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    """Who changes his mind early gets exit code 0, and neither broker nor child stays behind."""
    with Up(tmp_path) as up:
        up.until_said("Starting Apache Kafka")
        assert up.stop() == 0
        assert "  ready in " not in up.output
        assert up.is_over()
        assert not broker_process.is_alive(embedded.files_of(up.settings))


def test_a_broker_that_ran_before_stays(tmp_path: Path) -> None:
    """`up` uses the broker of `kafka start` and leaves it running; it stops only its own."""
    up = Up(tmp_path)
    embedded.start(up.settings)
    with up:
        up.until_ready()
        assert "using the broker that runs already" in up.output
        assert up.stop() == 0
        assert embedded.status(up.settings).answers


@pytest.mark.parametrize("which", ["web_port", "sandbox_port", "kafka_port"])
def test_a_port_in_use_is_said_and_refused(tmp_path: Path, which: str) -> None:
    """A port that somebody else has is named, with the setting that changes it; exit code 1."""
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        up = Up(tmp_path)
        setattr(up, which, port)
        with up:
            until(up.has_ended, "up has ended")
            assert up.process is not None
            assert up.process.returncode == 1
            setting = {"sandbox_port": "--sandbox-port", "kafka_port": "BOOTSTRAP_SERVERS"}
            assert str(port) in up.output
            assert setting.get(which, "AGENTS_STREAM_WEB_PORT") in up.output
            assert "Traceback" not in up.output


def test_tools_of_the_user_are_not_replaced(tmp_path: Path) -> None:
    """With both tools' URLs set there is no sandbox; the gateway calls what was set."""
    tools = {
        "AGENTS_STREAM_WHATSAPP_URL": f"http://127.0.0.1:{free_port()}/messages",
        "AGENTS_STREAM_CRM_URL": f"http://127.0.0.1:{free_port()}/orders",
        "AGENTS_STREAM_RETRY_BACKOFF": "50ms",
    }
    with Up(tmp_path, variables=tools) as up:
        up.until_ready()
        assert set(up.children()) == {"worker", "gateway"}
        assert "chat" not in up.output
        remind(up, "s-1")
        up.until_said("whatsapp.message.send failed, to be retried: not_sent")
        up.until_said("retries_exhausted")
        assert up.stop() == 0
