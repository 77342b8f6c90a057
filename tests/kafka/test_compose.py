"""docker-compose.kafka.yml offers what the embedded broker is: same version, same settings."""

from pathlib import Path
from typing import Any

import yaml

from agents_stream.kafka.broker_files import HEAP, Address, server_properties
from agents_stream.kafka.jars import kafka_version

COMPOSE = Path(__file__).parent.parent.parent / "docker-compose.kafka.yml"
# Where a container's network and file system differ from a process on this machine.
OF_ITS_PLACE = {"listeners", "advertised.listeners", "controller.quorum.voters", "log.dirs"}
OF_JAVA = {"KAFKA_HEAP_OPTS", "KAFKA_JVM_PERFORMANCE_OPTS"}


def service() -> dict[str, Any]:
    """Give the one service of the file."""
    document = yaml.safe_load(COMPOSE.read_text("utf-8"))
    assert set(document) == {"services", "volumes"}
    assert list(document["services"]) == ["kafka"]
    return dict(document["services"]["kafka"])


def test_same_version() -> None:
    """The image is that of the jars."""
    assert service()["image"] == f"apache/kafka:{kafka_version()}"


def test_same_settings() -> None:
    """Each setting of the embedded broker is there, and no other."""
    lines = server_properties(Address("localhost", 9092), 9093, "data").splitlines()
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    embedded = {key: value for key, value in pairs if key not in OF_ITS_PLACE}
    environment = {k: v for k, v in service()["environment"].items() if k not in OF_JAVA}
    compose = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): str(value)
        for name, value in environment.items()
    }
    assert {key: value for key, value in compose.items() if key not in OF_ITS_PLACE} == embedded
    assert set(compose) - set(embedded) == OF_ITS_PLACE


def test_same_memory_and_only_for_this_machine() -> None:
    """The heap is the embedded broker's, and the port is open to nobody else."""
    assert service()["environment"]["KAFKA_HEAP_OPTS"] == " ".join(HEAP)
    assert service()["ports"] == ["127.0.0.1:9092:9092"]
