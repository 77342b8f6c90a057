"""Hostile records through a live worker, canaries among them, and a verifier that counts.

The verifier knows every offset that it was given. It reads the journal and the dead letters, and
nothing of ours tells it what it should find: each record stands in one of the two, once; records
of aborted transactions in neither.
"""

import asyncio
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.structs import TopicPartition

from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topics import ACTIONS, DEAD_LETTERS, JOURNAL, OUTCOMES
from agents_stream.settings import Settings
from tests.hostile.batches import send_raw
from tests.hostile.kinds import HEAVY, INPUTS, MANY, Shot
from tests.kafka.cluster import Cluster, WorkerProcess, cluster, succeed

MAX_PEAK_MIB: Final = 1_024
"""What a worker of four partitions may take in all, whatever comes."""

AT_ONCE: Final = 4
CANARY_EVERY_S: Final = 1.0
CANARY_LIMIT_S: Final = 60.0
DRAIN_S: Final = 300.0
ANSWERED: Final = [("data_collection", "responded", "awaiting_more_data")]
SILENT: Final = [("promos", "timeout", "auto_created_order")]

Place = tuple[str, int]
Say = Callable[[str], None]


@dataclass
class Sent:
    """What was appended: per partition a mark for every offset, and how many of each kind."""

    expected: dict[Place, dict[int, str]] = field(default_factory=dict)
    aborted: dict[Place, set[int]] = field(default_factory=dict)
    kinds: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        """Hostile records in the log."""
        return self.kinds.total()

    def note(self, kind: str, place: Place, first: int, end: int) -> None:
        """Records of a kind have these offsets."""
        self.kinds[kind] += end - first
        offsets = self.expected.setdefault(place, {})
        for offset in range(first, end):
            offsets[offset] = kind


@dataclass
class Report:
    """What a siege found. `faults` is empty where all is well."""

    sent: Sent
    seconds: float
    accepted: Counter[str]
    buried: Counter[tuple[str, str]]
    canaries: int
    peak_mib: int
    faults: list[str]


async def besiege(settings: Settings, records: int, seed: int, say: Say = print) -> Report:
    """Start a worker, send so many hostile records and some heavy ones, and verify.

    Raises:
        AssertionError: the worker ended, or did not get through in time.

    """
    async with cluster(settings, _reply, unheard=(DEAD_LETTERS,)) as seen:
        worker = await seen.worker().ready()
        pid = worker.process.pid if worker.process else 0
        began = time.monotonic()
        stop = asyncio.Event()
        birds = asyncio.create_task(_canaries(seen, stop))
        sent = await _attack(seen, worker, records, random.Random(seed), say)
        await _until_drained(seen, worker, sent, say)
        stop.set()
        canaries = await birds
        seconds = time.monotonic() - began
        faults = await _judge_canaries(seen, canaries)
        accepted, buried, more = await verify(settings, sent)
        if worker.process is None or worker.process.poll() is not None:
            faults.append(f"the worker ended: {worker.tail()}")
        peak = _peak_mib(pid)
        if peak > MAX_PEAK_MIB:
            faults.append(f"the worker took {peak} MiB, {MAX_PEAK_MIB} are allowed")
        return Report(sent, seconds, accepted, buried, len(canaries), peak, faults + more)


def _reply(command: dict[str, Any]) -> dict[str, Any] | None:
    """Tools answer canaries only: what hostile sessions ask for stays pending."""
    return succeed(command) if command["sessionId"].startswith("canary") else None


# -- attacking ----------------------------------------------------------------------------------


async def _attack(
    seen: Cluster, worker: WorkerProcess, records: int, rng: random.Random, say: Say
) -> Sent:
    sent = Sent()
    options = client_options(seen.settings)
    producer = AIOKafkaProducer(**options, acks="all", max_request_size=2**27)
    await producer.start()
    try:
        shots = _shots(rng, records)
        told = time.monotonic()
        await asyncio.gather(*(_shoot(seen, producer, shots, sent) for _ in range(AT_ONCE - 1)),
                             _transactions(seen, sent, rng, max(2, records // 20_000)))  # fmt: skip
        say(f"{sent.count} records sent in {time.monotonic() - told:.0f} s")
        assert worker.process is not None
        assert worker.process.poll() is None, f"the worker ended: {worker.tail()}"
    finally:
        await producer.stop()
    return sent


def _shots(rng: random.Random, records: int) -> "itertools.chain[tuple[str, Shot, int]]":
    """Every kind in turn until there are enough; heavy ones spread among them."""

    def aimed() -> Any:
        left, light, heavy = records, itertools.cycle(MANY), itertools.cycle(HEAVY)
        rounds = 0
        while left > 0:
            kind = next(light)
            shot = MANY[kind](rng)
            left -= shot.count
            yield kind, shot, rng.randrange(4)
            rounds += 1
            if rounds % 24 == 0:
                kind = next(heavy)
                yield kind, HEAVY[kind](rng), rng.randrange(4)
        for kind in HEAVY:
            yield kind, HEAVY[kind](rng), rng.randrange(4)

    return itertools.chain(aimed())


async def _shoot(seen: Cluster, producer: AIOKafkaProducer, shots: Any, sent: Sent) -> None:
    for kind, shot, partition in shots:
        place = (seen.topic(shot.topic), partition)
        try:
            first, end = await send_raw(producer, *place, shot.payload, shot.count)
        except Exception as error:  # noqa: BLE001 - what the broker refuses is no record
            sent.refused[f"{kind}: {type(error).__name__}"] += shot.count
            continue
        sent.note(kind, place, first, end)


async def _transactions(seen: Cluster, sent: Sent, rng: random.Random, count: int) -> None:
    """Some are committed, most aborted; neither may hold anything up."""
    producer = AIOKafkaProducer(
        **client_options(seen.settings), transactional_id=f"{seen.settings.topic_prefix}siege"
    )
    await producer.start()
    try:
        for number in range(count):
            places = [(seen.topic(rng.choice(INPUTS)), rng.randrange(4)) for _ in range(3)]
            await producer.begin_transaction()
            offsets = []
            for topic, partition in places:
                for _ in range(10):
                    value = orjson.dumps({"sessionId": "h-1"})
                    acked = await producer.send_and_wait(topic, value, partition=partition)
                    offsets.append(((topic, partition), acked.offset))
            await asyncio.sleep(0.2)
            if number % 3 == 0:
                await producer.commit_transaction()
                for place, offset in offsets:
                    sent.note("committed transactions", place, offset, offset + 1)
            else:
                await producer.abort_transaction()
                for place, offset in offsets:
                    sent.aborted.setdefault(place, set()).add(offset)
    finally:
        await producer.stop()


# -- canaries -----------------------------------------------------------------------------------


async def _canaries(seen: Cluster, stop: asyncio.Event) -> dict[str, list[tuple[str, str, str]]]:
    """Good conversations all the while, and what each must lead to."""
    promised: dict[str, list[tuple[str, str, str]]] = {}
    for number in itertools.count():
        talker = await seen.open(f"canary-talks-{number}")
        await seen.collect(talker)
        await seen.message(talker)
        promised[talker] = ANSWERED
        silent = await seen.open(f"canary-waits-{number}")
        await seen.offer(silent)
        promised[silent] = SILENT
        try:
            await asyncio.wait_for(stop.wait(), CANARY_EVERY_S)
        except TimeoutError:
            continue
        return promised
    raise AssertionError("the count never ends")


async def _judge_canaries(
    seen: Cluster, promised: Mapping[str, list[tuple[str, str, str]]]
) -> list[str]:
    told = _outcomes(seen)
    try:
        async with asyncio.timeout(CANARY_LIMIT_S):
            while any(len(told[one]) < len(outcomes) for one, outcomes in promised.items()):
                await asyncio.sleep(0.5)
                told = _outcomes(seen)
    except TimeoutError:
        pass
    return [
        f"{session}: {told[session]}, should be {outcomes}"
        for session, outcomes in promised.items()
        if told[session] != outcomes
    ]


def _outcomes(seen: Cluster) -> dict[str, list[tuple[str, str, str]]]:
    """All outcomes of canaries so far, each id once, by session."""
    ids: set[str] = set()
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for record in seen.records.get(seen.topic(OUTCOMES), []):
        if not record.key.startswith(b"canary"):
            continue
        value = orjson.loads(record.value)
        if value["id"] not in ids:
            ids.add(value["id"])
            found[value["sessionId"]].append((value["flow"], value["status"], value["action"]))
    return found


# -- verifying ----------------------------------------------------------------------------------


async def _until_drained(seen: Cluster, worker: WorkerProcess, sent: Sent, say: Say) -> None:
    """Wait until the group has committed everything of inputs, journal and actions."""
    settings = seen.settings
    topics = [seen.topic(name) for name in (*INPUTS, JOURNAL, ACTIONS)]
    tps = [TopicPartition(name, n) for name in topics for n in range(settings.partitions)]
    options = client_options(settings)
    admin = AIOKafkaAdminClient(**options)
    reader = AIOKafkaConsumer(**options, isolation_level="read_committed")
    await admin.start()
    await reader.start()
    try:
        async with asyncio.timeout(DRAIN_S + sent.count / 2_000):
            while True:
                ends = await reader.end_offsets(tps)
                done = await admin.list_consumer_group_offsets(settings.group_id)
                lag = sum(max(0, end - _offset_of(done, tp)) for tp, end in ends.items())
                if lag == 0:
                    return
                assert worker.process is not None
                assert worker.process.poll() is None, f"the worker ended: {worker.tail()}"
                say(f"lag {lag}")
                await asyncio.sleep(1)
    finally:
        await admin.close()
        await reader.stop()


def _offset_of(done: Mapping[TopicPartition, Any], tp: TopicPartition) -> int:
    meta = done.get(tp)
    return 0 if meta is None else max(0, int(meta.offset))


async def verify(
    settings: Settings, sent: Sent
) -> tuple[Counter[str], Counter[tuple[str, str]], list[str]]:
    """Compare the journal and the dead letters with what was sent.

    Returns:
        What was accepted by kind, what was buried by kind and reason, and the faults.

    """
    accepted: Counter[str] = Counter()
    buried: Counter[tuple[str, str]] = Counter()
    faults: list[str] = []
    found: dict[Place, Counter[int]] = {}
    async for record in _whole(settings, JOURNAL):
        source = orjson.loads(record.value)["source"]
        _count(found, source)
        kind = sent.expected.get((source["topic"], source["partition"]), {}).get(source["offset"])
        if kind is not None:
            accepted[kind] += 1
    async for record in _whole(settings, DEAD_LETTERS):
        letter = orjson.loads(record.value)
        source = letter["source"]
        kind = sent.expected.get((source["topic"], source["partition"]), {}).get(source["offset"])
        if kind is None or not str(letter["id"]).startswith("dl:"):
            continue  # about a record that the journal has: a decision refused it
        _count(found, source)
        buried[kind, letter["reason"]] += 1
    for place, offsets in sent.expected.items():
        times = found.get(place, Counter())
        wrong = {offset: times[offset] for offset in offsets if times[offset] != 1}
        if wrong:
            some = [(offset, count, offsets[offset]) for offset, count in list(wrong.items())[:5]]
            faults.append(f"{place}: {len(wrong)} records not exactly once, such as {some}")
    for place, gone in sent.aborted.items():
        if shown := [offset for offset in gone if found.get(place, Counter())[offset]]:
            faults.append(f"{place}: aborted records were taken: {shown[:5]}")
    return accepted, buried, faults


def _count(found: dict[Place, Counter[int]], source: Mapping[str, Any]) -> None:
    found.setdefault((source["topic"], source["partition"]), Counter())[source["offset"]] += 1


async def _whole(settings: Settings, name: str) -> AsyncIterator[Any]:
    """Everything on a topic, as somebody else's consumer reads it."""
    topic = settings.topic_prefix + name
    reader = AIOKafkaConsumer(
        **client_options(settings), enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await reader.start()
    try:
        tps = [TopicPartition(topic, number) for number in range(settings.partitions)]
        reader.assign(tps)
        ends = await reader.end_offsets(tps)
        left = {tp for tp in tps if ends[tp] > 0}
        while left:
            for records in (await reader.getmany(timeout_ms=200)).values():
                for record in records:
                    yield record
            left = {tp for tp in left if await reader.position(tp) < ends[tp]}
    finally:
        await reader.stop()


def _peak_mib(pid: int) -> int:
    """The most memory that a process ever had, where the system tells; else 0."""
    try:
        with open(f"/proc/{pid}/status") as status:  # noqa: PTH123 - no file on a disk
            line = next(line for line in status if line.startswith("VmHWM"))
    except OSError:
        return 0
    return int(line.split()[1]) // 1024
