"""What the processes of one `up` are told, and the place that it holds for itself.

Settings go to the children as `AGENTS_STREAM_*` variables, all of them, so that a flag given to
`up` or a change made for the demo beats whatever `.env` says.
"""

import fcntl
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from agents_stream import leash
from agents_stream.core.errors import TerminalError
from agents_stream.settings import Settings, parse_duration

LOCALHOST: Final = "127.0.0.1"
ORPHANS_LIMIT_S: Final = 60.0
_LOCK_NAME: Final = "up.lock"
_POLL_S: Final = 0.1
_PORT_ATTEMPTS: Final = 100
# Outside the range from which systems take the ports of outgoing connections.
_FIRST_PORT: Final = 20_000
_LAST_PORT: Final = 32_000
_MAX_PORT: Final = 65_535


@dataclass(frozen=True, slots=True)
class Plan:
    """What one `up` runs.

    `settings` are those of every child, `sandbox_port` is None where no sandbox is wanted, and
    `fresh` means that whatever is in the data directory is thrown away first.
    """

    settings: Settings
    sandbox_port: int | None
    fresh: bool = False

    @property
    def sandbox_url(self) -> str | None:
        """Where the sandbox answers."""
        return None if self.sandbox_port is None else sandbox_url(self.sandbox_port)


def sandbox_url(port: int) -> str:
    """Give the address of a sandbox of this machine."""
    return f"http://{LOCALHOST}:{port}"


def plan_up(settings: Settings, sandbox_port: int | None) -> Plan:
    """Plan a normal `up`: the sandbox plays the tools for which no URL is set."""
    changes: dict[str, Any] = {"replication": 1}
    if settings.web_port == 0:
        changes["web_port"] = free_port()
    if settings.whatsapp_url and settings.crm_url:
        return Plan(settings.model_copy(update=changes), None)
    port = sandbox_port or _next_port(changes.get("web_port", settings.web_port))
    ours = tool_urls(port)
    changes |= {name: url for name, url in ours.items() if getattr(settings, name) is None}
    return Plan(settings.model_copy(update=changes), port)


def tool_urls(port: int) -> dict[str, str]:
    """Give the settings that name the sandbox's tools."""
    url = sandbox_url(port)
    return {
        "whatsapp_url": f"{url}/whatsapp/messages",
        "crm_url": f"{url}/crm/orders",
        "engine_webhook_url": f"{url}/engine",
    }


def environment_of(settings: Settings) -> dict[str, str]:
    """Give the environment of a child: ours, with all settings, JSON logs and the leash."""
    told = {
        f"AGENTS_STREAM_{name.upper()}": _written(name, getattr(settings, name))
        for name in Settings.model_fields
    }
    told |= {"AGENTS_STREAM_LOG_FORMAT": "json", "PYTHONUNBUFFERED": "1"}
    told[leash.VARIABLE] = leash.STDIN
    return {**os.environ, **told}


def _written(name: str, value: Any) -> str:
    """Write a setting as its variable is written; None as nothing, which counts as not set."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    checks = Settings.model_fields[name].metadata
    if any(getattr(check, "func", None) is parse_duration for check in checks):
        return f"{value}ms"
    return str(value)


def require_free_port(host: str, port: int, what: str, setting: str) -> None:
    """Make sure that a child will be able to listen.

    Raises:
        TerminalError: something listens there already; the message says what to change.

    """
    if not is_free(host, port):
        raise TerminalError(
            f"port {port} is in use by another program, so {what} cannot listen there. Stop that"
            f" program, or choose another port with {setting}"
        )


def is_free(host: str, port: int) -> bool:
    """Say whether one can listen at an address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """Find a port of this machine on which nobody listens.

    Raises:
        TerminalError: none was found.

    """
    for _ in range(_PORT_ATTEMPTS):
        port = random.randint(_FIRST_PORT, _LAST_PORT)  # noqa: S311 - no secret
        if is_free(LOCALHOST, port):
            return port
    raise TerminalError(f"no free port was found in {_PORT_ATTEMPTS} attempts")


def _next_port(port: int) -> int:
    return port + 1 if port < _MAX_PORT else free_port()


@contextmanager
def claim(folder: Path) -> Iterator[int]:
    """Hold a data directory for this `up`; gives the descriptor of the lock, for children.

    The children inherit the lock. So it is free only when all of the last `up` has ended, and a
    killed one is waited for.

    Raises:
        TerminalError: another `up` holds it, or the folder cannot be written.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK_NAME).open("a+")
    except OSError as error:
        raise TerminalError(
            f"{folder} cannot be used: {error}. Make it writable, or set AGENTS_STREAM_DATA_DIR to"
            " a folder that is"
        ) from error
    with lock:
        give_up_at = time.monotonic() + ORPHANS_LIMIT_S
        while not _try_lock(lock.fileno()):
            lock.seek(0)
            holder = lock.read().strip()
            if _lives(holder) or time.monotonic() > give_up_at:
                raise TerminalError(
                    f"`agents-stream up` runs already for {folder} (process {holder or 'unknown'})."
                    " Stop it first, or set AGENTS_STREAM_DATA_DIR to another folder"
                )
            time.sleep(_POLL_S)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield lock.fileno()
        lock.truncate(0)


def _try_lock(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _lives(holder: str) -> bool:
    """Whether the process of that number lives; none has been written yet: it is just starting."""
    if not holder.isdigit():
        return True
    try:
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
