"""The examples of docs/producers.md, run as they stand there."""

import asyncio
import re
import shutil
import sys
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaConsumer

from agents_stream.client import AgentsStream
from agents_stream.kafka.connection import client_options
from agents_stream.kafka.topic_admin import apply
from agents_stream.kafka.topics import partition_for
from agents_stream.settings import Settings
from tests.http.serving import serve

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "producers.md").read_text(encoding="utf-8")
EXAMPLES = [
    text
    for language, text in re.findall(r"```(python|bash)\n(.*?)```", PAGE, re.DOTALL)
    if language == "python" or text.startswith("curl")
]


def test_the_page_has_examples() -> None:
    """The pattern finds them: four of Python and one of curl."""
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.split("\n")[0][:40])
async def test_the_example_sends(example: str, kafka_settings: Settings) -> None:
    """It ends well and what it sent lies under the session's key, where Java would put it."""
    if example.startswith("curl") and shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    await apply(kafka_settings)
    async with (
        AgentsStream.from_settings(kafka_settings) as stream,
        serve(stream, kafka_settings) as url,
    ):
        program = (
            example.replace("localhost:9092", kafka_settings.bootstrap_servers)
            .replace("http://localhost:6066", url)
            .replace('"agent.', f'"{kafka_settings.topic_prefix}agent.')
        )
        # --fail: that the worker refuses it is a failure of the example.
        shell = ["bash", "-ec", program.replace("curl ", "curl --fail ")]
        command = shell if example.startswith("curl") else [sys.executable, "-c", program]
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=ROOT,
            env={
                "PATH": "/usr/local/bin:/usr/bin:/bin",
                "AGENTS_STREAM_TOPIC_PREFIX": kafka_settings.topic_prefix,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, err.decode()
    if example.startswith("curl"):
        assert orjson.loads(out) == {"ids": ["close-42"]}
    consumer = AIOKafkaConsumer(**client_options(kafka_settings), auto_offset_reset="earliest")
    consumer.subscribe(pattern=f"^{re.escape(kafka_settings.topic_prefix)}(agent|tool)[.].*")
    await consumer.start()
    try:
        record = await asyncio.wait_for(consumer.getone(), 20)
    finally:
        await consumer.stop()
    assert record.key == b"s-42"
    assert record.partition == partition_for(b"s-42", kafka_settings.partitions)
