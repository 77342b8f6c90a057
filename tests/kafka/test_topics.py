"""topics.yaml as typed values: order, names, events, partitions."""

import pytest
from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from agents_stream.core.errors import TerminalError
from agents_stream.kafka import topics
from agents_stream.kafka.in_loop_thread import SESSION_TIMEOUT_MS
from agents_stream.kafka.topics import load_topics, parse_topics, partition_for

# SPEC §1, row by row.
TABLE = [
    ("agent.session.started", "agent/session.started"),
    ("agent.session.updated", "agent/session.updated"),
    ("agent.data.captured", "agent/data.captured"),
    ("agent.customer.message", "agent/customer.message"),
    ("agent.collecting_data.started", "agent/collecting_data.started"),
    ("agent.promos.offered", "agent/promos.offered"),
    ("agent.proactive.send", "agent/proactive.send"),
    ("agent.session.close", "agent/session.close"),
    ("agent.operator", "agent/operator.action"),
    ("tool.results", None),
    ("session.deadlines", None),
    ("session.journal", None),
    ("session.actions", None),
    ("tool.whatsapp.message.send", None),
    ("tool.crm.order.create", None),
    ("agent.outcomes", None),
    ("agent.dead_letters", None),
]
MINIMAL = """
defaults: {cleanup.policy: delete}
roles: {input: {retention.ms: 5}, changelog: {cleanup.policy: compact}}
topics:
  - {name: a, role: input, event: agent/a, config: {x.enable: true}}
  - {name: b, role: changelog}
"""


def test_the_topics_are_those_of_the_contract_in_its_order() -> None:
    """The table of SPEC §1 stands in topics.yaml, row by row: its order is the merge's (G5)."""
    specs = load_topics().specs
    assert [(spec.name, spec.event) for spec in specs[: len(TABLE)]] == TABLE


def test_inputs_end_with_the_deadlines() -> None:
    """Of records of one millisecond deadlines come last, so that an answer beats them (G5)."""
    all_topics = load_topics()
    assert [spec.name for spec in all_topics.inputs] == [name for name, _ in TABLE[:11]]
    assert all_topics.rank(topics.DEADLINES) == 10
    assert all_topics.rank(topics.SESSION_STARTED) == 0


def test_every_constant_names_a_topic_and_every_topic_has_one() -> None:
    """A name in code that is not in topics.yaml would be a topic that nobody reads."""
    constants = {
        value for name, value in vars(topics).items() if name.isupper() and isinstance(value, str)
    }
    assert constants == {spec.name for spec in load_topics().specs}


@pytest.mark.parametrize("spec", load_topics().specs, ids=lambda spec: spec.name)
def test_time_comes_from_the_brokers_and_nothing_is_cut_by_size(spec: topics.TopicSpec) -> None:
    """All are LogAppendTime (G4, G5), the table's changelog alone is fenced by CreateTime (G9)."""
    fenced = spec.name == topics.SESSIONS_CHANGELOG
    assert spec.config["message.timestamp.type"] == ("CreateTime" if fenced else "LogAppendTime")
    assert spec.config["retention.bytes"] == "-1"
    assert spec.config["cleanup.policy"] == ("compact" if spec.role == "changelog" else "delete")


def test_the_fence_is_shorter_than_the_session_timeout() -> None:
    """G9: who takes over does so 6 s after the last good heartbeat, whose stamp is refused then."""
    config = load_topics()[topics.SESSIONS_CHANGELOG].config
    assert 3_000 <= int(config["message.timestamp.before.max.ms"]) < SESSION_TIMEOUT_MS
    assert int(config["min.compaction.lag.ms"]) >= 600_000


def test_journal_and_dead_letters_are_kept_for_ever() -> None:
    """Replay starts at the first record (G8), and a dead letter is not lost (G1)."""
    for name in (topics.JOURNAL, topics.DEAD_LETTERS):
        assert load_topics()[name].config["retention.ms"] == "-1"


def test_names_with_prefix_and_back() -> None:
    """The prefix goes before every name, the changelog's included."""
    found = load_topics()
    assert found.name(topics.JOURNAL, "eu.") == "eu.session.journal"
    assert found.base_of("eu.session.journal", "eu.") == topics.JOURNAL
    assert "eu.agents-stream-sessions-changelog" in found.names("eu.")
    for stranger in ("session.journal", "eu.other", "us.session.journal"):
        with pytest.raises(KeyError):
            found.base_of(stranger, "eu.")


def test_events_and_their_topics() -> None:
    """Each event name leads to its topic, and bare data on a topic to its event."""
    found = load_topics()
    assert found.events["agent/operator.action"].name == topics.OPERATOR
    assert found.event_of_topic(topics.OPERATOR) == "agent/operator.action"
    assert found.event_of_topic(topics.TOOL_RESULTS) is None
    assert len(found.events) == 9


def test_config_is_defaults_then_role_then_own() -> None:
    """What stands nearer to the topic wins, and values are written as Kafka writes them."""
    parsed = parse_topics(MINIMAL)
    assert dict(parsed["a"].config) == {
        "cleanup.policy": "delete",
        "retention.ms": "5",
        "x.enable": "true",
    }
    assert dict(parsed["b"].config) == {"cleanup.policy": "compact"}


@pytest.mark.parametrize(
    "wrong",
    [
        "topics: [",
        "",
        MINIMAL.replace("role: changelog", "role: stranger"),
        MINIMAL.replace("name: b", "name: 'with space'"),
        MINIMAL.replace("name: b", "name: a"),
        MINIMAL.replace("event: agent/a", "evnt: agent/a"),
    ],
)
def test_a_wrong_definition_is_refused(wrong: str) -> None:
    """A mistake in topics.yaml ends the command with its place, and creates nothing."""
    with pytest.raises(TerminalError, match=r"topics\.yaml"):
        parse_topics(wrong)


@pytest.mark.parametrize(
    ("key", "murmur2"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_partition_is_that_of_javas_default_partitioner(key: bytes, murmur2: int) -> None:
    """Java producers and ours agree (G5); the hashes are those of Kafka's own UtilsTest."""
    for partitions in (1, 3, 8, 1024):
        assert partition_for(key, partitions) == (murmur2 & 0x7FFFFFFF) % partitions


@given(st.binary(max_size=256), st.integers(1, 1024))
def test_partition_agrees_with_aiokafka(key: bytes, partitions: int) -> None:
    """What aiokafka chooses by itself and what we choose is one partition, for every key."""
    everything = list(range(partitions))
    assert partition_for(key, partitions) == DefaultPartitioner()(key, everything, everything)
