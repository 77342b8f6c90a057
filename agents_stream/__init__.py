"""agents_stream: sales-agent sessions as actors on Kafka, whose timers never get lost."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("agents-stream")
except PackageNotFoundError:  # pragma: no cover - a checkout that was never installed
    __version__ = "0.0.0"
