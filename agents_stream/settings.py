"""Settings: flags, then `AGENTS_STREAM_*` variables, then `.env`, then the defaults of SPEC §7.

A flag is passed as a keyword to `Settings(...)`, which beats the environment. Durations are
written as `250ms`, `90s`, `6m` or `1h30m` and held as whole milliseconds. Secrets are
`SecretStr`, so that no log line and no traceback can show them.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
MAX_DURATION_MS = 365 * _UNIT_MS["d"]


def parse_duration(text: object) -> int:
    """Read a duration such as `250ms`, `90s`, `6m` or `1h30m` as milliseconds.

    Raises:
        ValueError: the text is no such duration, or it is longer than a year.

    """
    if isinstance(text, int) and not isinstance(text, bool):
        milliseconds = float(text)
    else:
        compact = str(text).replace(" ", "")
        parts = _PART.findall(compact)
        if not parts or "".join(number + unit for number, unit in parts) != compact:
            raise ValueError(f"{text!r} is no duration: write it as 250ms, 90s, 6m or 1h30m")
        milliseconds = sum(float(number) * _UNIT_MS[unit] for number, unit in parts)
    if not 0 <= milliseconds <= MAX_DURATION_MS:
        raise ValueError(f"{text!r} is out of range: a duration is 0 to 365 days")
    return round(milliseconds)


DurationMs = Annotated[int, BeforeValidator(parse_duration)]


class Settings(BaseSettings):
    """Everything that a process of ours can be told. One field is one setting of SPEC §7."""

    model_config = SettingsConfigDict(
        env_prefix="AGENTS_STREAM_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        validate_default=True,
    )

    bootstrap_servers: str = "localhost:9092"
    topic_prefix: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,100}$")
    partitions: int = Field(8, ge=1, le=1024)
    replication: int = Field(1, ge=1, le=9)
    data_dir: Path = Path(".agents-stream")
    cache_dir: Path | None = None
    java_home: Path | None = None

    web_host: str = "127.0.0.1"
    web_port: int = Field(6066, ge=0, le=65535)
    web_url: str | None = None
    http_rate: int = Field(2_000, ge=1, le=1_000_000)
    store: Literal["memory", "rocksdb"] = "memory"

    data_reply_timeout: DurationMs = 360_000
    promos_delay: DurationMs = 120_000
    promos_reply_timeout: DurationMs = 600_000
    retry_backoff: DurationMs = 1_000

    whatsapp_url: str | None = None
    whatsapp_token: SecretStr | None = None
    crm_url: str | None = None
    crm_token: SecretStr | None = None
    tool_connect_timeout: DurationMs = 5_000
    tool_read_timeout: DurationMs = 30_000
    tool_concurrency: int = Field(32, ge=1, le=1024)
    engine_webhook_url: str | None = None
    engine_webhook_secret: SecretStr | None = None

    auth_token: SecretStr | None = None
    event_key: SecretStr | None = None

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: Path | None = None

    start_from: Literal["earliest", "latest"] | None = None

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["pretty", "json"] = "pretty"

    @field_validator("bootstrap_servers")
    @classmethod
    def _has_ports(cls, value: str) -> str:
        for server in value.split(","):
            host, _, port = server.strip().rpartition(":")
            literal = host.startswith("[") and host.endswith("]")  # an IPv6 address
            if not host or (":" in host and not literal):
                raise ValueError(f"{server!r} is no broker address: write HOST:PORT")
            if not port.isdecimal() or not 0 < int(port) < 65536:  # noqa: PLR2004
                raise ValueError(f"{server!r} is no broker address: write HOST:PORT")
        return ",".join(server.strip() for server in value.split(","))

    @field_validator("sasl_password")
    @classmethod
    def _can_log_in(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        """Check the last of the SASL fields: those before it are in `info`."""
        wanted = str(info.data.get("security_protocol", "")).startswith("SASL")
        if wanted and (value is None or not info.data.get("sasl_username")):
            raise ValueError(
                "AGENTS_STREAM_SECURITY_PROTOCOL asks for a login: set AGENTS_STREAM_SASL_USERNAME"
                " and AGENTS_STREAM_SASL_PASSWORD"
            )
        return value

    @property
    def listen_url(self) -> str:
        """The address at which this machine reaches its own worker."""
        host = "127.0.0.1" if self.web_host in {"0.0.0.0", "::"} else self.web_host
        return (
            f"http://[{host}]:{self.web_port}" if ":" in host else f"http://{host}:{self.web_port}"
        )

    @property
    def public_url(self) -> str:
        """How the other workers of the cluster reach this one."""
        return (self.web_url or self.listen_url).rstrip("/")

    @property
    def group_id(self) -> str:
        """The consumer group of the workers; also the prefix of their tables' changelogs."""
        return f"{self.topic_prefix}agents-stream"

    @property
    def gateway_group_id(self) -> str:
        """The consumer group of the gateways."""
        return f"{self.topic_prefix}agents-stream-gateway"
