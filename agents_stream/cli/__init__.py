"""`agents-stream`: the commands of SPEC §7.

What may live here: words in, words out, exit codes. What a command does is done elsewhere and is
imported only when that command runs, so that `--help` and `send` are quick. Results go to standard
output, everything else to standard error.
"""

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import typer

from agents_stream.cli import audit, broker, letters, reads, run, send
from agents_stream.cli.options import takes_flags_before_command, usage_of
from agents_stream.cli.output import note
from agents_stream.core.errors import (
    AgentsStreamError,
    BrokerUnreachable,
    InvalidEvent,
    RetryableError,
)

EXIT_DONE: Final = 0
EXIT_REFUSED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3

_UsageError: Any = typer.BadParameter.__bases__[0]
"""What typer raises for every wrong usage; it publishes this one subclass only."""

app = typer.Typer(
    name="agents-stream",
    help="Sales-agent sessions as actors on Kafka, whose timers never get lost.",
    epilog=(
        "Settings are flags (before or after the command), then AGENTS_STREAM_* variables, then"
        " .env; secrets are never flags. Exit codes: 0 done, 1 refused, not found or a check"
        " failed, 2 wrong usage, 3 the broker or worker cannot be reached."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
takes_flags_before_command(app)
for part in (run, broker, send, reads, letters, audit):
    part.register(app)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code."""
    code = run_command(sys.argv[1:] if arguments is None else list(arguments))
    try:
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        # Whoever read our output has gone: nothing is left to say, and Python shall not try.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(code)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command; give its exit code. Errors become one or two sentences on stderr."""
    try:
        code = app(list(arguments), prog_name="agents-stream", standalone_mode=False)
    except AgentsStreamError as error:
        return _tell(_words_of(error), _code_of(error))
    except _UsageError as error:
        return _tell(usage_of(error), EXIT_USAGE)
    except typer.Abort:
        return _tell("stopped before it was done", EXIT_REFUSED)
    except Exception as error:
        if "debug" in {os.environ.get("AGENTS_STREAM_LOG_LEVEL", "").lower(), *arguments}:
            raise
        return _tell(
            f"this is a fault of agents-stream: {type(error).__name__}: {error}."
            " --log-level debug shows where",
            EXIT_REFUSED,
        )
    return code if isinstance(code, int) else EXIT_DONE


def _code_of(error: AgentsStreamError) -> int:
    unreachable = isinstance(error, BrokerUnreachable | RetryableError)
    return EXIT_UNREACHABLE if unreachable else EXIT_REFUSED


def _words_of(error: AgentsStreamError) -> str:
    return f"{error.reason}: {error.detail}" if isinstance(error, InvalidEvent) else str(error)


def _tell(words: str, code: int) -> int:
    note(f"agents-stream: {words}")
    return code
