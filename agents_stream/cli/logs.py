"""The log of a process: structlog to standard error, pretty or as JSON lines.

Tracebacks are plain: those with local variables would show what customers wrote.
"""

import logging
import sys
from typing import Any, Final

import structlog

from agents_stream.settings import Settings

_LEVELS: Final = logging.getLevelNamesMapping()
_TALKATIVE: Final = ("httpx", "httpcore", "faust", "mode", "aiokafka", "asyncio", "kafka")
"""Libraries that log requests, URLs or every record: of these, warnings only."""


def configure_logging(settings: Settings, default_level: str) -> None:
    """Set up the log; `default_level` where nobody has chosen a level.

    A command that runs once and whose user chose no level says in its own words what went wrong;
    the libraries below it are silent.
    """
    chosen = "log_level" in settings.model_fields_set
    level = _LEVELS[(settings.log_level if chosen else default_level).upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last = _last_steps(settings.log_format)
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    is_silent = not chosen and default_level != "info"
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.CRITICAL if is_silent else level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(root.level, logging.WARNING))


def _last_steps(log_format: str) -> list[Any]:
    if log_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    ]
