"""A Kafka that demands to know who is there: the embedded broker, with other listeners.

Three addresses of one real broker, none of which takes a plain client: SASL over TLS, TLS alone,
and SASL without encryption. `worker` may do everything, `limited` what docs/operations.md lists and
no more, `stranger` may log in and do nothing.
"""

import asyncio
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest
from cryptography.hazmat.primitives import serialization

from agents_stream.kafka import broker_files
from agents_stream.kafka.broker_files import Address, BrokerFiles
from agents_stream.kafka.broker_process import end, spawn
from agents_stream.kafka.connection import client_options, require_broker
from agents_stream.kafka.jars import default_cache_dir, ensure_jars
from agents_stream.kafka.java import find_java
from agents_stream.kafka.progress import SilentReporter
from agents_stream.kafka.topic_admin import MISSING, check
from agents_stream.settings import Settings
from tests.conftest import free_port

START_S = 60.0
FORMAT_S = 60.0
PROTOCOLS = ("SASL_SSL", "SSL", "SASL_PLAINTEXT")
_SCRAM = ("SCRAM-SHA-256", "SCRAM-SHA-512")
_SASL = ("PLAIN", *_SCRAM)
# Numbers of Kafka's protocol.
_TOPIC, _GROUP, _PREFIXED, _ALLOWED = 2, 3, 4, 3
_READ, _WRITE, _DESCRIBE, _DESCRIBE_CONFIGS = 3, 4, 8, 10
_ON_TOPICS = (_READ, _WRITE, _DESCRIBE, _DESCRIBE_CONFIGS)
_ON_GROUPS = (_READ, _DESCRIBE)


@dataclass(frozen=True)
class SecureBroker:
    """Where it listens, by protocol, and what it wants to see there."""

    ports: dict[str, int]
    passwords: dict[str, str]
    certificates: Path

    def settings(self, protocol: str, user: str = "worker", **more: object) -> Settings:
        """What a client of ours needs to get in."""
        given: dict[str, object] = {
            "bootstrap_servers": f"127.0.0.1:{self.ports[protocol]}",
            "security_protocol": protocol,
        }
        if protocol.endswith("SSL"):
            given["ssl_cafile"] = self.certificates
        if protocol.startswith("SASL"):
            given |= {"sasl_username": user, "sasl_password": self.passwords[user]}
        return Settings.model_validate(given | more)


@contextmanager
def secure_broker(folder: Path) -> Iterator[SecureBroker]:
    """Run one until the end of the block."""
    authority = trustme.CA()
    certificates = folder / "authority.pem"
    authority.cert_pem.write_to_path(certificates)
    names = ("admin", "worker", "limited", "stranger")
    passwords = {name: secrets.token_hex(12) for name in names}
    ports = {protocol: free_port() for protocol in PROTOCOLS}
    broker = SecureBroker(ports, passwords, certificates)
    files = BrokerFiles(folder / "kafka")
    files.folder.mkdir()
    _write_key(authority, files.folder / "server.pem")
    files.properties.write_text(_properties(broker), "ascii")
    files.properties.chmod(0o600)
    files.logging.write_text(broker_files.logging_properties(), "ascii")
    java, jars = find_java(None), ensure_jars(default_cache_dir(), SilentReporter())
    environment = broker_files.java_environment()
    tool = ["kafka.tools.StorageTool", "format", "-c", files.properties.name]
    tool += ["-t", broker_files.new_cluster_id()]
    for mechanism in _SCRAM:
        for name in names:
            tool += ["--add-scram", f"{mechanism}=[name={name},password={passwords[name]}]"]
    subprocess.run(
        broker_files.java_command(java, jars, tool),
        cwd=files.folder,
        env=environment,
        timeout=FORMAT_S,
        check=True,
        capture_output=True,
    )
    command = broker_files.java_command(java, jars, ["kafka.Kafka", files.properties.name])
    spawn(files, command, environment)
    try:
        asyncio.run(_until_it_answers(broker.settings("SASL_SSL")))
        yield broker
    finally:
        end(files)


async def _until_it_answers(settings: Settings) -> None:
    await require_broker(settings, START_S)
    await asyncio.sleep(0.1)  # asyncio closes a TLS connection a little after its owner did


async def allow_what_is_listed(broker: SecureBroker, prefix: str) -> None:
    """Give `limited` the rights that docs/operations.md lists, below a prefix."""
    admin = AIOKafkaAdminClient(**client_options(broker.settings("SASL_SSL")))
    await admin.start()
    try:
        for kind, operations in ((_TOPIC, _ON_TOPICS), (_GROUP, _ON_GROUPS)):
            for operation in operations:
                one = CreateAclsRequest(
                    kind, prefix, _PREFIXED, "User:limited", "*", operation, _ALLOWED
                )
                answer = await admin._send_request(one)
                assert all(code == 0 for code, _ in answer.creation_responses), answer
    finally:
        await admin.close()
    limited = broker.settings("SASL_SSL", "limited", topic_prefix=prefix)
    async with asyncio.timeout(START_S):
        while any(one.setting == MISSING for one in await check(limited)):  # noqa: ASYNC110 - Kafka rings no bell
            await asyncio.sleep(0.1)  # a broker learns of new rights a little later


def _write_key(authority: trustme.CA, path: Path) -> None:
    """Write the broker's key, in the one form that Kafka reads, and its certificate."""
    issued = authority.issue_cert("127.0.0.1", "localhost")
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(text + b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    path.chmod(0o600)


def _properties(broker: SecureBroker) -> str:
    """The embedded broker's own settings, with other listeners, credentials and an authorizer."""
    controller = free_port()
    own = broker_files.server_properties(Address("127.0.0.1", 1), controller, "data")
    listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in broker.ports.items())
    names = ",".join(f"{name}:{name}" for name in PROTOCOLS)
    replaced = {
        "listeners": f"{listeners},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": listeners,
        "listener.security.protocol.map": f"{names},CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "SASL_SSL",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "sasl.enabled.mechanisms": ",".join(_SASL),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": "server.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(broker.certificates),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # Who comes over TLS alone, and the controller's own listener, have no name.
        "super.users": "User:admin;User:worker;User:ANONYMOUS",
    }
    module = "org.apache.kafka.common.security"
    users = " ".join(f'user_{name}="{word}"' for name, word in broker.passwords.items())
    for protocol in ("sasl_ssl", "sasl_plaintext"):
        place = f"listener.name.{protocol}"
        replaced[f"{place}.plain.sasl.jaas.config"] = (
            f'{module}.plain.PlainLoginModule required username="admin"'
            f' password="{broker.passwords["admin"]}" {users};'
        )
        for mechanism in _SCRAM:
            replaced[f"{place}.{mechanism.lower()}.sasl.jaas.config"] = (
                f"{module}.scram.ScramLoginModule required;"
            )
    kept = [line for line in own.splitlines() if line.partition("=")[0] not in replaced]
    return "\n".join([*kept, *(f"{name}={value}" for name, value in replaced.items()), ""])
