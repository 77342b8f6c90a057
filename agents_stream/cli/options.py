"""Settings as flags: one flag for each field of `Settings` that is no secret.

A command is decorated with `@takes(...)` and gets a `settings` that flags, environment and `.env`
have made. It shows the flags that concern it and takes the others too, as it takes their
variables, so that one set of flags does for every command of a script. Secrets come by
environment only: a flag can be read in the list of processes.
"""

import functools
import inspect
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args, get_origin

import typer
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from agents_stream.cli.output import say
from agents_stream.settings import Settings, parse_duration

Command = Callable[..., None]

CONNECTION: Final = (
    "bootstrap_servers",
    "topic_prefix",
    "security_protocol",
    "sasl_mechanism",
    "sasl_username",
    "ssl_cafile",
)
LOGS: Final = ("log_level", "log_format")
SHAPE: Final = ("partitions", "replication")
BROKER: Final = ("bootstrap_servers", "data_dir", "cache_dir", "java_home")
WEB: Final = ("web_host", "web_port")
FLOWS: Final = ("data_reply_timeout", "promos_delay", "promos_reply_timeout", "retry_backoff")
TOOLS: Final = (
    "whatsapp_url",
    "crm_url",
    "engine_webhook_url",
    "tool_connect_timeout",
    "tool_read_timeout",
    "tool_concurrency",
    "retry_backoff",
)
WORKER: Final = (
    *CONNECTION,
    *SHAPE,
    *WEB,
    "web_url",
    "http_rate",
    "data_dir",
    "store",
    *FLOWS,
    "start_from",
)

_HELP: Final[Mapping[str, str]] = {
    "bootstrap_servers": "Where Kafka is.",
    "topic_prefix": "What stands before every topic's name.",
    "partitions": "How many partitions each topic has.",
    "replication": "How many replicas each topic has.",
    "data_dir": "Where this machine keeps its data.",
    "cache_dir": "Where Kafka's downloaded files are kept.",
    "java_home": "A Java (17 or newer) for the embedded Kafka, instead of its own.",
    "web_host": "The address on which a worker's HTTP listens.",
    "web_port": "The port of a worker's HTTP.",
    "web_url": "How the other workers reach this one.",
    "http_rate": "How many requests a second one client may make.",
    "store": "Where a worker keeps the rows of its sessions.",
    "data_reply_timeout": "How long a customer has to answer with data.",
    "promos_delay": "How long to wait before the packs are offered.",
    "promos_reply_timeout": "How long a customer has to choose a pack.",
    "retry_backoff": "The pause before the first retry of a command.",
    "whatsapp_url": "Where the gateway sends messages.",
    "crm_url": "Where the gateway creates orders.",
    "tool_connect_timeout": "How long connecting to a tool may take.",
    "tool_read_timeout": "How long a tool's answer may take.",
    "tool_concurrency": "How many calls of a tool may run at once.",
    "engine_webhook_url": "Where the engine is told of outcomes.",
    "security_protocol": "How Kafka is spoken to.",
    "sasl_mechanism": "How we say who we are.",
    "sasl_username": "Who we are, for SASL.",
    "ssl_cafile": "The certificates that we trust.",
    "start_from": "Where a group begins that has lost its offsets.",
    "log_level": "What is worth a line in the log.",
    "log_format": "How the log is written.",
}
_KEY: Final = "settings_"
_MAX_TIME_MS: Final = 2**53
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _is_secret(field: FieldInfo) -> bool:
    return field.annotation is SecretStr or SecretStr in get_args(field.annotation)


FIELDS: Final = tuple(
    name for name, field in Settings.model_fields.items() if not _is_secret(field)
)
"""The settings that may be flags."""


def takes(*shown: str, log_level: str = "warning") -> Callable[[Command], Command]:
    """Give a command its `settings`; its help shows the flags of the settings `shown`.

    `log_level` is the level where nobody has chosen one: commands that run for long pass "info".
    """

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True).parameters

        @functools.wraps(command)
        def run(ctx: typer.Context, **values: Any) -> None:
            from agents_stream.cli.logs import configure_logging  # noqa: PLC0415 - rich is slow

            given = {**(ctx.obj or {}), **_take_flags(values)}
            if ctx.invoked_subcommand is not None:  # of a group that is a command as well
                ctx.obj = given
                return
            settings = read_settings(given)
            configure_logging(settings, log_level)
            command(settings=settings, **values)

        rest = [item for name, item in own.items() if name != "settings"]
        _declare(run, [*rest, *_flags(frozenset({*shown, *LOGS}))])
        return run

    return decorate


def takes_flags_before_command(app: typer.Typer) -> None:
    """Let an application take every flag before the command too; the command's own beat them."""

    def remember(ctx: typer.Context, *, version: bool, **values: Any) -> None:
        """Remember the flags for the command that follows."""
        if version:
            from agents_stream import __version__  # noqa: PLC0415 - reads the package's metadata

            say(f"agents-stream {__version__}")
            raise typer.Exit(0)
        ctx.obj = _take_flags(values)
        if ctx.invoked_subcommand is None:
            ctx.get_help()
            raise typer.Exit(2)

    asked = typer.Option(False, "--version", help="Show the version.", is_eager=True)
    version = inspect.Parameter(
        "version", inspect.Parameter.KEYWORD_ONLY, default=asked, annotation=bool
    )
    _declare(remember, [version, *_flags(frozenset())])
    app.callback(invoke_without_command=True)(remember)


def read_settings(given: Mapping[str, str]) -> Settings:
    """Make settings of flags, environment and `.env`.

    Raises:
        typer.BadParameter: a value is wrong (exit code 2); the message says which.

    """
    try:
        return Settings(**given)  # type: ignore[arg-type] # strings, which it judges
    except ValidationError as error:
        raise typer.BadParameter(_explain(error, given)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f".env cannot be read: {error}") from None


def usage_of(error: Any) -> str:
    """The words of a usage error: what is wrong, and where help is."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "agents-stream"
    wrong = error.format_message().rstrip(".") or "a command is missing"
    return f"{wrong}. `{path} --help` shows what it takes"


def parse_moment(name: str, text: str) -> int:
    """A time in ms: written so, as ISO 8601 (UTC unless it says otherwise), or as `2h` ago.

    Raises:
        typer.BadParameter: it is none of these.

    """
    if text.isascii() and text.isdigit() and int(text[:20]) <= _MAX_TIME_MS:
        return int(text)
    try:
        return time.time_ns() // 1_000_000 - parse_duration(text)
    except ValueError:
        pass  # then it is a date, or wrong
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{name} {text!r} is no time: write 2026-01-31T12:00:00Z, 90m (ago), or ms"
        ) from None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(milliseconds=1)


def duration_text(milliseconds: int) -> str:
    """A duration as people write it: `1h30m`, `90s`, `250ms`."""
    seconds, rest = divmod(milliseconds, 1_000)
    if rest or not seconds:
        return f"{milliseconds}ms"
    parts = ((seconds // 3_600, "h"), (seconds // 60 % 60, "m"), (seconds % 60, "s"))
    return "".join(f"{count}{unit}" for count, unit in parts if count)


def flag_of(field: str) -> str:
    """The flag of a setting."""
    return "--" + field.replace("_", "-")


def _declare(command: Command, parameters: list[inspect.Parameter]) -> None:
    """Tell typer what a function takes."""
    context = inspect.Parameter(
        "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
    )
    declared = [context, *parameters]
    command.__signature__ = inspect.Signature(declared)  # type: ignore[attr-defined]
    command.__annotations__ = {item.name: item.annotation for item in declared}


def _flags(shown: frozenset[str]) -> list[inspect.Parameter]:
    return [_flag(name, hidden=name not in shown) for name in FIELDS]


def _flag(name: str, *, hidden: bool) -> inspect.Parameter:
    field = Settings.model_fields[name]
    option = typer.Option(
        None,
        flag_of(name),
        metavar=_metavar(name, field),
        help=_help(name, field),
        hidden=hidden,
        show_default=False,
        rich_help_panel="Settings",
    )
    return inspect.Parameter(
        _KEY + name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=str | None
    )


def _help(name: str, field: FieldInfo) -> str:
    text = _HELP.get(name, "")
    if field.default is None or field.default == "":
        return text
    default = duration_text(field.default) if _is_duration(field) else str(field.default)
    return f"{text} Default: {default}"


def _metavar(name: str, field: FieldInfo) -> str:
    choices = _choices(field.annotation)
    if choices:
        return "|".join(choices)
    if _is_duration(field):
        return "DURATION"
    if field.annotation is int:
        return "N"
    if name == "bootstrap_servers":
        return "HOST:PORT,..."
    return "URL" if name.endswith("_url") else "TEXT"


def _choices(annotation: Any) -> tuple[str, ...]:
    for kind in (annotation, *get_args(annotation)):
        if get_origin(kind) is Literal:
            return get_args(kind)
    return ()


def _is_duration(field: FieldInfo) -> bool:
    return any(getattr(item, "func", None) is parse_duration for item in field.metadata)


def _take_flags(values: dict[str, Any]) -> dict[str, str]:
    """Move the flags that were given out of a command's values."""
    flags = {name: values.pop(_KEY + name) for name in FIELDS}
    return {name: value for name, value in flags.items() if value is not None}


def _explain(error: ValidationError, given: Mapping[str, str]) -> str:
    faults = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        field = re.sub(r"[^a-z_]", "", str(fault["loc"][0]).lower()) if fault["loc"] else ""
        name = flag_of(field) if field in given else f"AGENTS_STREAM_{field.upper()}"
        faults.append(f"{name}: {fault['msg'].removeprefix('Value error, ')}")
    return "; ".join(faults)
