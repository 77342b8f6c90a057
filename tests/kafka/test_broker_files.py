"""The files of the embedded broker. What it does with damaged ones is in test_embedded.py."""

from pathlib import Path

import pytest

from agents_stream.kafka.broker_files import (
    Address,
    BrokerFiles,
    is_formatted,
    java_command,
    java_environment,
    new_cluster_id,
    server_properties,
)


@pytest.mark.parametrize("text", ["localhost:9092", "[::1]:9092", "10.0.0.7:19092"])
def test_an_address_reads_as_it_is_written(text: str) -> None:
    """Also one of IPv6, whose brackets are no part of the host."""
    address = Address.parse(text)
    assert str(address) == text
    assert "[" not in address.host


def test_cluster_ids_are_kafkas() -> None:
    """22 characters that are no option of a command line."""
    for _ in range(200):
        cluster_id = new_cluster_id()
        assert len(cluster_id) == 22
        assert not cluster_id.startswith("-")


def test_settings_that_the_design_relies_on() -> None:
    """Each was found missing by somebody once; see the reasons beside them."""
    lines = server_properties(Address("::1", 9092), 9093, "data").splitlines()
    assert "listeners=PLAINTEXT://[::1]:9092,CONTROLLER://127.0.0.1:9093" in lines
    assert "auto.create.topics.enable=false" in lines
    assert "group.initial.rebalance.delay.ms=0" in lines
    assert "group.min.session.timeout.ms=6000" in lines


def test_nothing_of_other_java_programs_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heap that is set for an IDE is not ours, and the locale can read every file name."""
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Xmx8g")
    monkeypatch.setenv("LC_ALL", "C")
    environment = java_environment()
    assert "JAVA_TOOL_OPTIONS" not in environment
    assert environment["LC_ALL"] == "C.UTF-8"
    assert "-Xmx512m" in java_command(Path("java"), [], ["kafka.Kafka"])


def test_an_empty_folder_is_not_formatted(tmp_path: Path) -> None:
    """Neither one that is not there; a formatted one teaches the cluster's id."""
    files = BrokerFiles(tmp_path)
    assert not is_formatted(files)
    files.data.mkdir()
    assert not is_formatted(files)
    files.meta.write_text("#\nversion=1\ncluster.id=MkU3OEVBNTcwNTJENDM2Qg\nnode.id=1\n")
    assert is_formatted(files)
    assert files.cluster_id.read_text() == "MkU3OEVBNTcwNTJENDM2Qg\n"
