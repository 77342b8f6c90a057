"""Where the demo plays: a data directory and ports of its own, and durations 60 times shorter."""

import shutil
from typing import Final

from agents_stream.core.errors import TerminalError
from agents_stream.kafka import embedded
from agents_stream.settings import Settings
from agents_stream.up.environment import LOCALHOST, Plan, free_port, is_free, tool_urls
from agents_stream.up.screen import Screen

FOLDER: Final = "demo"
# A sixtieth of the contract's 6 min, 2 min and 10 min.
DATA_REPLY_MS: Final = 6_000
PROMOS_DELAY_MS: Final = 2_000
PROMOS_REPLY_MS: Final = 10_000
RETRY_BACKOFF_MS: Final = 250
_KEPT: Final = "up.lock"


def plan_demo(settings: Settings, sandbox_port: int | None, screen: Screen) -> Plan:
    """Plan a demo that touches nothing of the user's: no Kafka, no tool, no data."""
    web_port = _port(settings.web_port, screen, "the worker", set(), _is_chosen(settings))
    kafka_port = _kafka_port(settings, screen, {web_port})
    taken = {web_port, kafka_port}
    if sandbox_port is None:
        sandbox_port = _port(web_port + 1, screen, "the sandbox", taken, chosen=False)
    changes = {
        "data_dir": settings.data_dir / FOLDER,
        "bootstrap_servers": f"{LOCALHOST}:{kafka_port}",
        "security_protocol": "PLAINTEXT",
        "replication": 1,
        "web_host": LOCALHOST,
        "web_port": web_port,
        "web_url": None,
        "data_reply_timeout": DATA_REPLY_MS,
        "promos_delay": PROMOS_DELAY_MS,
        "promos_reply_timeout": PROMOS_REPLY_MS,
        "retry_backoff": RETRY_BACKOFF_MS,
        "start_from": None,
        **tool_urls(sandbox_port),
    }
    return Plan(settings.model_copy(update=changes), sandbox_port, fresh=True)


def prepare_folder(settings: Settings) -> None:
    """Empty the demo's data directory; a broker that was left behind there is stopped.

    Raises:
        TerminalError: it cannot be emptied.

    """
    embedded.stop(settings)
    try:
        for path in settings.data_dir.iterdir():
            if path.name == _KEPT:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    except OSError as error:
        raise TerminalError(f"{settings.data_dir} cannot be emptied: {error}") from error


def _is_chosen(settings: Settings) -> bool:
    return "web_port" in settings.model_fields_set and settings.web_port != 0


def _kafka_port(settings: Settings, screen: Screen, taken: set[int]) -> int:
    """Take the port of BOOTSTRAP_SERVERS where that is this machine; the demo never calls out."""
    host, _, port = settings.bootstrap_servers.split(",")[0].rpartition(":")
    local = host in {LOCALHOST, "localhost"}
    chosen = local and "bootstrap_servers" in settings.model_fields_set
    return _port(int(port) if local else 0, screen, "Kafka", taken, chosen=chosen)


def _port(wanted: int, screen: Screen, what: str, taken: set[int], chosen: bool) -> int:  # noqa: FBT001
    """Take the port that is wanted, or another one where nobody has chosen it and it is in use."""
    if chosen or (wanted and wanted not in taken and is_free(LOCALHOST, wanted)):
        return wanted
    port = free_port()
    if wanted:
        screen.say(f"port {wanted} is in use: {what} of the demo listens on {port}")
    return port
