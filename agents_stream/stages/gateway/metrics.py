"""What the gateway counts. A registry of its own, for whoever serves or pushes it."""

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

registry: Final = CollectorRegistry()

commands: Final = Counter(
    "agents_stream_gateway_commands",
    "Attempts of commands, by what became of them (repeated: the stored result went out again)",
    ["tool", "status"],
    registry=registry,
)
http_seconds: Final = Histogram(
    "agents_stream_gateway_http_seconds",
    "How long one HTTP call took",
    ["target"],
    buckets=_SECONDS,
    registry=registry,
)
in_flight: Final = Gauge(
    "agents_stream_gateway_in_flight",
    "HTTP calls under way",
    ["target"],
    registry=registry,
)
webhooks: Final = Counter(
    "agents_stream_gateway_webhooks",
    "Records posted to the engine, by what became of them",
    ["event", "status"],
    registry=registry,
)
dead_letters: Final = Counter(
    "agents_stream_gateway_dead_letters",
    "Records put into the dead letters",
    ["reason"],
    registry=registry,
)
remembered: Final = Gauge(
    "agents_stream_gateway_remembered_attempts",
    "Attempts in the memory of the partitions held",
    registry=registry,
)
