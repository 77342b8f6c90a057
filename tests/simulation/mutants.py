"""The protocol broken on purpose, one fault at a time.

Each mutant is an exact replacement in one file: where the source no longer has the old text exactly
once, the mutant is refused loudly, and has to be brought up to date with the code that it breaks.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

SESSIONS: Final = "agents_stream/stages/sessions.py"
INGRESS: Final = "agents_stream/stages/ingress.py"
EFFECTS: Final = "agents_stream/stages/effects.py"
TIMERS: Final = "agents_stream/stages/timers.py"
DECIDER: Final = "agents_stream/core/decider.py"
MERGE: Final = "agents_stream/core/merge.py"
ENGINE: Final = "agents_stream/kafka/engine.py"
CONSUMER: Final = "agents_stream/kafka/consumer.py"
RECOVERY: Final = "agents_stream/kafka/recovery.py"
MEMORY: Final = "agents_stream/stages/gateway/memory.py"
PERFORMER: Final = "agents_stream/stages/gateway/performer.py"


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault. `test` names the pytest test that catches it where no world can."""

    name: str
    path: str
    old: str
    new: str
    test: str | None = None

    def applied_to(self, root: Path) -> str:
        """The text of the broken file.

        Raises:
            ValueError: the source does not have the old text exactly once.

        """
        text = (root / self.path).read_text("utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: {self.path} has the text to be broken {count} times")
        return text.replace(self.old, self.new)


MUTANTS: Final = (
    Mutant(
        "no wait for the changelog",
        SESSIONS,
        "            nexts = await self.engine.sessions_appender.append(pending)\n",
        "            sent = __import__('asyncio').ensure_future\n"
        "            self.sent = sent(self.engine.sessions_appender.append(pending))\n"
        "            nexts = dict.fromkeys(pending.lines, -1)\n",
    ),
    Mutant(
        "record installed before its ack",
        SESSIONS,
        "            nexts = await self.engine.sessions_appender.append(pending)\n"
        "            for partition, written in rows.items():\n"
        "                self.table.install(partition, written, "
        "nexts[self._changelog, partition])\n",
        "            for partition, written in rows.items():\n"
        "                self.table.install(partition, written, -1)\n"
        "            nexts = await self.engine.sessions_appender.append(pending)\n",
    ),
    Mutant(
        "actions before the record",
        SESSIONS,
        "        await self._write(work)\n"
        "        if work.actions.lines:\n"
        "            await self._actions_appender.append(work.actions)\n",
        "        if work.actions.lines:\n"
        "            await self._actions_appender.append(work.actions)\n"
        "        await self._write(work)\n",
    ),
    Mutant(
        "event acknowledged early",
        SESSIONS,
        "        self._prune(work, batches)\n        await self._write(work)\n",
        "        self._prune(work, batches)\n"
        "        for batch in batches:\n"
        "            self.consumer.done(batch.topic, batch.partition, batch.position)\n"
        "        await self._write(work)\n",
    ),
    Mutant(
        "event acknowledged before its actions",
        SESSIONS,
        "        if work.actions.lines:\n            await self._actions",
        "        for batch in batches:\n"
        "            self.consumer.done(batch.topic, batch.partition, batch.position)\n"
        "        if work.actions.lines:\n            await self._actions",
    ),
    Mutant(
        "the outbox is not published again",
        SESSIONS,
        "            owed = before.outbox.get(record.offset, ())\n",
        "            owed = ()\n",
    ),
    Mutant(
        "outbox pruned too early",
        SESSIONS,
        "if any(offset < begin for offset in record.outbox):\n"
        "                kept = {offset: owed for offset, owed in record.outbox.items() "
        "if offset >= begin}\n",
        "if record.outbox:\n                kept = {}\n",
    ),
    Mutant(
        "an early deadline is not handed back",
        SESSIONS,
        "        work.early.append((at.partition, entry.session_id, name, late_by_ms))\n",
        "        assert (name, late_by_ms)\n",
    ),
    Mutant(
        "sources acknowledged before the journal has them",
        INGRESS,
        "        if not await self._append(taken):\n",
        "        for number in partitions:\n"
        "            self._acknowledge(number)\n"
        "        if not await self._append(taken):\n",
    ),
    Mutant(
        "end offsets not asked",
        INGRESS,
        "            mine = tuple(ends[topic, number] for topic in self.inputs)\n",
        "            mine = self._merges[number].positions\n",
    ),
    Mutant(
        "the question's own time is no bound",
        INGRESS,
        "        before_ms = clock.now_ms() if clock.known else None\n",
        "        before_ms = None if clock.known else None\n",
    ),
    Mutant(
        "a question too old is not asked anew",
        INGRESS,
        "            if not merge.must_read(asked.ends):\n",
        "            if merge.awaited(asked.ends) is None:\n",
    ),
    Mutant("no merge by time", MERGE, "        taken.sort(key=itemgetter(0))\n", ""),
    Mutant(
        "a backlog is not held for the slowest topic",
        MERGE,
        "bound = _AFTER_ALL if awaited is None else self._last_shown(awaited)\n",
        "bound = _AFTER_ALL if awaited is None else _AFTER_ALL\n",
    ),
    Mutant(
        "done offset one too far",
        MERGE,
        "            topic.records[0].offset if topic.records else topic.position for topic",
        "            topic.records[0].offset + 1 if topic.records else topic.position for topic",
    ),
    Mutant(
        "deadline not last in its millisecond",
        INGRESS,
        "for spec in load_topics().inputs)\n        self._ranks",
        "for spec in reversed(load_topics().inputs))\n        self._ranks",
    ),
    Mutant(
        "changelog without its time fence",
        "topics.yaml",
        "      message.timestamp.before.max.ms: 5000\n",
        "",
    ),
    Mutant(
        "fence stamped with now",
        ENGINE,
        "        proven = self.membership.proven_stamp_ms\n",
        "        proven = self.clock.now_ms()\n",
    ),
    Mutant(
        "fence worked out when it is written",
        ENGINE,
        "        return proven\n",
        "        return self.clock.at(self.membership.proven_at_ms or 0.0)\n",
    ),
    Mutant(
        "a heartbeat of a group that rebalances is proof",
        "agents_stream/kafka/membership.py",
        "            counts = good and not rejoining() and coordinator.generation == generation\n",
        "            counts = good\n",
        "tests/kafka/test_membership.py::test_what_is_no_proof",
    ),
    Mutant(
        "two produce batches in flight",
        "agents_stream/kafka/appender.py",
        "        batch = self._producer.create_batch()\n"
        "        for line in lines:\n"
        "            if not _put(batch, line):\n"
        "                await self._send(batch, topic, partition)\n"
        "                batch = self._producer.create_batch()\n"
        "                if not _put(batch, line):\n"
        '                    raise AssertionError("a fresh batch takes any record")\n'
        "        return await self._send(batch, topic, partition)\n",
        "        batch, flying = self._producer.create_batch(), []\n"
        "        for line in lines:\n"
        "            if not _put(batch, line):\n"
        "                flying.append(self._send(batch, topic, partition))\n"
        "                batch = self._producer.create_batch()\n"
        "                _put(batch, line)\n"
        "        flying.append(self._send(batch, topic, partition))\n"
        "        return (await asyncio.gather(*flying))[-1]\n",
    ),
    Mutant(
        "last write wins at recovery",
        "agents_stream/kafka/row_fold.py",
        "    return other is None or position > journal_position(other)\n",
        "    return position > (-1, -1)\n",
        "tests/kafka/test_recovery.py::"
        "test_any_changelog_recovers_to_the_highest_record_of_each_key",
    ),
    Mutant(
        "the winner is not written again",
        RECOVERY,
        "        if beaten and not await self._write_winners(topic, stores, beaten, turn):\n",
        "        if beaten and not beaten:\n",
        "tests/kafka/test_recovery.py::test_a_revoke_waits_for_the_winners",
    ),
    Mutant(
        "rows kept after a missed generation",
        RECOVERY,
        "        kept = partitions & before if generation_id == generation + 1 "
        "else frozenset[int]()\n",
        "        kept = partitions & before\n",
    ),
    Mutant(
        "rows kept from any generation",
        RECOVERY,
        "        for partition in set(self.table.partitions_owned) - wanted.kept:\n",
        "        for partition in set(self.table.partitions_owned) - wanted.partitions:\n",
    ),
    Mutant(
        "a proof outlives its generation",
        RECOVERY,
        "        self.engine.membership.forget()\n",
        "",
        "tests/kafka/test_recovery.py::test_each_generation_is_proven_anew",
    ),
    Mutant(
        "the wheel is not rebuilt",
        "agents_stream/app.py",
        "        self.engine.assign_hooks.append(self._rebuild_wheel)\n",
        "",
    ),
    Mutant(
        "retries not durable",
        TIMERS,
        "        for name, deadline in wanted.items():\n            timer_id = known.get(name)\n",
        "        for name, deadline in wanted.items():\n"
        "            if name.startswith('retry:') and partition not in self._indexes:\n"
        "                continue\n"
        "            timer_id = known.get(name)\n",
    ),
    Mutant(
        "deadlines into the journal's partition",
        TIMERS,
        "            home = partition if record.home is None else record.home\n",
        "            home = partition\n",
    ),
    Mutant(
        "epoch check missing",
        "agents_stream/kafka/stage.py",
        "                current = [batch for batch in batches if batch.epoch == "
        "self.consumer.epoch]\n",
        "                current = batches\n",
    ),
    Mutant(
        "a fetch during a rebalance is dropped",
        CONSUMER,
        "                self.kafka.seek(tp, records[0].offset)\n",
        "                pass\n",
        "tests/kafka/test_consumer.py::test_what_comes_while_the_flow_is_stopped_is_read_again",
    ),
    Mutant(
        "a revoke waits for no stage",
        CONSUMER,
        "                for stage in stages:\n                    await stage.lock.acquire()\n",
        "                stages = []\n",
    ),
    Mutant(
        "commits go to the position",
        CONSUMER,
        "        self._done[tp] = offset\n",
        "        self._done[tp] = max(offset, self._positions.get(tp, offset))\n",
    ),
    Mutant(
        "no generation check of deadlines",
        DECIDER,
        '    if deadline is None or deadline.generation != entry.data["generation"]:\n',
        "    if deadline is None:\n",
    ),
    Mutant(
        "early deadlines fire",
        DECIDER,
        "    elif entry.source.timestamp < deadline.due_at_ms:\n",
        "    elif entry.source.timestamp < 0:\n",
    ),
    Mutant(
        "`seen` not kept",
        DECIDER,
        "    return entry.source.offset <= offset and entry.source.timestamp <= timestamp\n",
        "    return entry.source.offset <= offset and entry.source.timestamp <= -timestamp\n",
    ),
    Mutant(
        "own events accepted twice",
        DECIDER,
        "    if _is_ours(entry) and entry.event_id not in record.own_events:\n",
        "    if _is_ours(entry) and entry.event_id is None:\n",
    ),
    Mutant(
        "recent ids forgotten",
        DECIDER,
        "    return Reason.DUPLICATE if key is not None and key in record.recent_ids else None\n",
        "    return Reason.DUPLICATE if key is not None and key == record else None\n",
    ),
    Mutant(
        "an entry read twice is applied twice",
        DECIDER,
        "    if record is not None and record.passed(at.offset, at.timestamp):\n",
        "    if record is not None and record.passed(at.offset + 1, at.timestamp):\n",
    ),
    Mutant(
        "order message before order",
        "agents_stream/core/flows/promos.py",
        '    yield Proceed(FLOW, "ordering", run.run)\n',
        '    yield CallTool("whatsapp.message.send", {"contactId": run.conversation_id, "message": '
        'CREATED_TEXT}, flow=FLOW, then="told", run=run.run, conversation_id=run.conversation_id, '
        'workspace_id=run.workspace_id, status="timeout", action="auto_created_order")\n'
        '    yield Proceed(FLOW, "ordering", run.run)\n',
    ),
    Mutant(
        "actions acknowledged before they are out",
        EFFECTS,
        "        pending = Pending()\n        count = 0\n",
        "        pending = Pending()\n"
        "        for batch in batches:\n"
        "            self.consumer.done(batch.topic, batch.partition, batch.position)\n"
        "        count = 0\n",
    ),
    Mutant(
        "gateway: no start is written",
        PERFORMER,
        "                if known is None and not await memory.start(attempt):\n",
        "                if known is None and False:\n",
    ),
    Mutant(
        "gateway: the start is not awaited",
        PERFORMER,
        "                if known is None and not await memory.start(attempt):\n",
        "                if known is None and not asyncio.ensure_future(memory.start(attempt)):\n",
    ),
    Mutant(
        "gateway: another's start is not obeyed",
        MEMORY,
        "        return known.started_by == self._run_id\n",
        "        return True\n",
        "tests/stages/test_gateway_memory.py::"
        "test_of_two_gateways_that_believe_they_own_a_partition_one_calls",
    ),
    Mutant(
        "gateway: the first end is not decisive",
        MEMORY,
        "        return counts\n",
        "        return ours\n",
    ),
    Mutant(
        "gateway: no end is written",
        PERFORMER,
        '        return await memory.finish(attempt, result), str(result["status"])\n',
        "        return __import__('orjson').dumps(result), str(result[\"status\"])\n",
    ),
    Mutant(
        "gateway: an interrupted message is sent again",
        PERFORMER,
        "        if known is not None and not tool.idempotent:\n",
        "        if known is not None and tool is None:\n",
    ),
)
