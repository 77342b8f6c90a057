"""The whole pipeline on the embedded broker: every path of SPEC §4, for both stores."""

from typing import Any

import orjson
import pytest

from agents_stream.core.flows import data_collection, promos
from agents_stream.settings import Settings
from tests.kafka.cluster import Cluster, cluster, succeed

ALL_DATA = {"nombre": "Ana", "telefono": "1", "ciudad": "Cali", "direccion": "Calle 1"}


def picky(command: dict[str, Any]) -> dict[str, Any] | None:
    """Tools that do with each session what its name says."""
    session = command["sessionId"]
    order = command["tool"] == "crm.order.create"
    failed = {"status": "failed", "error": {"code": "http_500", "message": "no"}}
    answers: dict[tuple[str, bool], dict[str, Any] | None] = {
        ("order-fails", True): {**failed, "retryable": False},
        ("exhausted", True): {**failed, "retryable": True},
        ("message-fails", False): {**failed, "retryable": False},
        ("message-unknown", False): {**failed, "status": "unknown"},
        ("late-order", True): None,
    }
    if command["attempt"] < 3:
        answers["outage", True] = {**failed, "retryable": True}
    return answers.get((session, order), succeed(command))


@pytest.mark.parametrize("store", ["memory", "rocksdb"])
async def test_every_path_of_the_flows(kafka_settings: Settings, store: str) -> None:
    """SPEC §4, path by path, all of them beside each other in one worker (G3, G7)."""
    async with cluster(kafka_settings, picky) as seen:
        await seen.worker(store).ready()
        await _collect_data(seen)
        await _offer_promos(seen)
        await _send_proactively(seen)
        await _close(seen)


async def _collect_data(seen: Cluster) -> None:
    silent, some, complete, answered = [
        await seen.open(name) for name in ("silent", "some", "complete", "answered")
    ]
    restarted = await seen.open("restarted")
    await seen.send("agent/data.captured", some, data={"nombre": "Ana", "ciudad": ""})
    await seen.send("agent/data.captured", complete, data=ALL_DATA)
    for session in (silent, some, complete, answered, restarted):
        await seen.collect(session)
    await seen.message(answered)
    await seen.message(complete)
    await seen.collect(restarted)
    await seen.message(restarted)
    await seen.until_outcomes(answered, ("data_collection", "responded", "awaiting_more_data"))
    await seen.until_outcomes(
        restarted,
        ("data_collection", "cancelled", "restarted"),
        ("data_collection", "responded", "awaiting_more_data"),
    )
    await seen.until_outcomes(silent, ("data_collection", "timeout", "sent_pending_message"))
    await seen.until_outcomes(some, ("data_collection", "timeout", "requested_missing_data"))
    assert seen.messages(silent) == [data_collection.PENDING_TEXT]
    assert seen.messages(some) == [
        "Para continuar con tu pedido, necesito que me confirmes: telefono, ciudad, direccion"
    ]
    await seen.until_outcomes(
        complete,
        ("data_collection", "complete", "transitioned_to_promos"),
        ("promos", "timeout", "auto_created_order"),
    )
    assert seen.messages(complete) == [promos.CREATED_TEXT]
    [order] = seen.values("tool.crm.order.create", complete)
    assert order["inputs"]["products"] == [{"product_id": "default-pack-1x", "quantity": 1}]


async def _offer_promos(seen: Cluster) -> None:
    paths = {
        "choosing": [("promos", "responded", "awaiting_selection_processing")],
        "order-fails": [("promos", "failed", "order_failed")],
        "outage": [("promos", "timeout", "auto_created_order")],
        "exhausted": [("promos", "failed", "order_failed")],
        "message-fails": [("promos", "timeout", "auto_created_order")],
        "message-unknown": [("promos", "timeout", "auto_created_order")],
    }
    for name in paths:
        await seen.open(name)
        await seen.offer(name)
    await seen.offer("nobody")
    await seen.message("choosing")
    for name, expected in paths.items():
        await seen.until_outcomes(name, *expected)
    await seen.until_outcomes("nobody", ("promos", "failed", "contact_unknown"))
    assert [item["attempt"] for item in seen.values("tool.crm.order.create", "outage")] == [1, 2, 3]
    assert len(seen.values("tool.crm.order.create", "exhausted")) == 4
    assert seen.messages("order-fails") == []
    assert seen.values("agent.outcomes", "message-fails")[0]["notified"] is False
    unknown = seen.values("agent.outcomes", "message-unknown")[0]
    assert (unknown["notified"], unknown["unknown"]) == (None, True)
    await seen.until(lambda: len(seen.values("agent.dead_letters")) >= 4)
    letters = {item["key"]: item["reason"] for item in seen.values("agent.dead_letters")}
    assert letters == {
        "order-fails": "tool_failed",
        "exhausted": "retries_exhausted",
        "message-fails": "tool_failed",
        "message-unknown": "tool_unknown",
    }


async def _send_proactively(seen: Cluster) -> None:
    session = await seen.open("proactive")
    for kind in ("reminder", "followup", "timeout_warning"):
        await seen.send(
            "agent/proactive.send",
            session,
            conversationId="c",
            workspaceId="w",
            messageType=kind,
            content="Hola Ana" if kind == "followup" else "",
        )
    await seen.until(lambda: len(seen.outcomes(session)) == 3)
    assert {item[2] for item in seen.outcomes(session)} == {
        "reminder",
        "followup",
        "timeout_warning",
    }
    assert seen.messages(session)[1] == "Hola Ana"


async def _close(seen: Cluster) -> None:
    session = await seen.open("late-order")
    await seen.offer(session)
    await seen.until(lambda: seen.values("tool.crm.order.create", session))
    await seen.send("agent/session.close", session, reason="handoff")
    [order] = seen.values("tool.crm.order.create", session)
    await seen.until(lambda: len(seen.outcomes(session)) == 2)
    await seen.result(order, status="succeeded", outputs={"id": "late-1"})
    await seen.until_outcomes(
        session,
        ("promos", "cancelled", "session_closed"),
        ("session", "closed", "handoff"),
        ("promos", "cancelled", "order_created_after_close"),
    )
    assert seen.messages(session) == []


async def test_bad_input_stops_nothing(kafka_settings: Settings) -> None:
    """G10, G1: what cannot be accepted goes to the dead letters, with all that SPEC §2 keeps."""
    bad: list[tuple[bytes | None, str]] = [
        (b"{", "invalid_json"),
        (b'{"sessionId": "x", "sessionId": "x"}', "invalid_json"),
        (b'{"sessionId": "x"}', "invalid_schema"),
        (b'{"name": "agent/unheard.of", "data": {}}', "unknown_event"),
        (b"\xff\xfe", "invalid_json"),
        (None, "invalid_json"),
        (b'{"x": 1e999}', "invalid_json"),
        (b"[" * 50_000, "invalid_json"),
        (orjson.dumps({"sessionId": "x", "content": "x" * 1_100_000}), "too_large"),
    ]
    async with cluster(kafka_settings) as seen:
        await seen.worker().ready()
        topic = seen.topic("agent.customer.message")
        for value, _ in bad:
            await seen.producer.send_and_wait(topic, value, key=b"x", partition=0)
        session = await seen.open()
        await seen.offer(session)
        await seen.message(session)
        await seen.until_outcomes(session, ("promos", "responded", "awaiting_selection_processing"))
        await seen.until(lambda: len(seen.values("agent.dead_letters")) == len(bad))
        letters = sorted(
            seen.values("agent.dead_letters"), key=lambda item: item["source"]["offset"]
        )
        assert [item["reason"] for item in letters] == [reason for _, reason in bad]
        assert letters[-1]["truncated"] is True
        assert letters[0]["value"] == "{"
