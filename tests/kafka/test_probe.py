"""Telling a Kafka broker from anything else that listens."""

import socket
import threading
import time

import pytest

from agents_stream.kafka.embedded import BrokerInfo
from agents_stream.kafka.probe import answers
from tests.conftest import free_port


def test_a_broker_answers(broker: BrokerInfo) -> None:
    """The real one does."""
    assert answers(broker.host, broker.port)


def test_nobody_answers() -> None:
    """A closed port is an answer too: no."""
    assert not answers("127.0.0.1", free_port())


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00"])
def test_another_program_is_no_broker(said: bytes) -> None:
    """A web server, or one that hangs up, is not taken for Kafka."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(said)

        serving = threading.Thread(target=serve)
        serving.start()
        assert not answers(*server.getsockname())
        serving.join()


def test_a_silent_program_costs_no_more_than_the_limit() -> None:
    """Somebody accepts and says nothing: the probe gives up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        assert not answers("127.0.0.1", server.getsockname()[1], limit_s=0.2)
        assert time.monotonic() - began < 1.0
