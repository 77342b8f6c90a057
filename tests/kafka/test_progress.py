"""What a person sees of a long step."""

import io

from agents_stream.kafka.progress import LineReporter, TerminalReporter, console_reporter


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def test_lines_for_a_file() -> None:
    """Without a terminal: plain lines, not one for each of hundreds of steps, and the last one."""
    out = io.StringIO()
    now_s = 100.0
    reporter = LineReporter(out, lambda: now_s)
    reporter.say("Downloading")
    for done in range(0, 30_000_001, 1_000_000):
        now_s += 0.2
        reporter.downloaded(done, 30_000_000)
    lines = out.getvalue().splitlines()
    assert lines[0] == "Downloading"
    assert lines[-1] == "  downloaded 30.0 of 30.0 MB"
    assert 3 <= len(lines) <= 6


def test_a_bar_for_a_terminal() -> None:
    """On a terminal a bar is drawn and taken away at the end; sentences stay."""
    out = Terminal()
    reporter = console_reporter(out)
    assert isinstance(reporter, TerminalReporter)
    reporter.say("Downloading")
    reporter.downloaded(0, 10)
    reporter.downloaded(10, 10)
    assert "Downloading" in out.getvalue()
    assert reporter._bar is None


def test_the_stream_decides() -> None:
    """A pipe gets lines."""
    assert isinstance(console_reporter(io.StringIO()), LineReporter)
