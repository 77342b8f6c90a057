"""SPEC §4, proactive, as transcripts; the language is explained in `transcript.py`."""

import pytest

from tests.core.transcript import retell, tidy

TRANSCRIPTS = {
    "a reminder": """
        given session.started
        proactive.send reminder
            @1 tells c1: REMINDER
        succeeded
            outcome proactive sent/reminder
    """,
    "a followup": """
        given session.started
        proactive.send followup
            @1 tells c1: FOLLOWUP
        succeeded
            outcome proactive sent/followup
    """,
    "a warning": """
        given session.started
        proactive.send timeout_warning
            @1 tells c1: WARNING
        succeeded
            outcome proactive sent/timeout_warning
    """,
    "the engine's own words": """
        given session.started
        proactive.send reminder {"content": "Sigues ahi?"}
            @1 tells c1: Sigues ahi?
        succeeded
            outcome proactive sent/reminder
    """,
    "empty words are none": """
        given session.started
        proactive.send followup {"content": ""}
            @1 tells c1: FOLLOWUP
        proactive.send followup {"content": null}
            @2 tells c1: FOLLOWUP
    """,
    "conversation and workspace are those of the event": """
        given session.started
        proactive.send reminder {"conversationId": "c2", "workspaceId": "w2"}
            @1 tells c2: REMINDER
        succeeded
            outcome proactive sent/reminder
                with {"in": "w2"}
    """,
    "several at once end one by one": """
        given session.started
        proactive.send reminder
            @1 tells c1: REMINDER
        proactive.send followup
            @2 tells c1: FOLLOWUP
        succeeded @2
            outcome proactive sent/followup
        failed @1
            buries @1: tool_failed, boom: no
            outcome proactive failed/reminder
                with {"error": {"code": "boom", "message": "no"}}
    """,
    "it fails for good": """
        given session.started; proactive.send reminder
        failed
            buries @1: tool_failed, boom: no
            outcome proactive failed/reminder
                with {"error": {"code": "boom", "message": "no"}}
    """,
    "it is tried four times": """
        given session.started; proactive.send reminder
        given failed retryable; due; failed retryable; due; failed retryable; due
        failed retryable
            buries @1: retries_exhausted, boom: no
            outcome proactive failed/reminder
                with {"error": {"code": "boom", "message": "no"}}
    """,
    "nobody knows whether it arrived": """
        given session.started; proactive.send timeout_warning
        unknown
            buries @1: tool_unknown, boom: no
            outcome proactive failed/timeout_warning
                with {"error": {"code": "boom", "message": "no"}, "unknown": true}
    """,
    "it disturbs no wait": """
        given session.started; collecting_data.started; promos.offered
        proactive.send reminder
            @1 tells c1: REMINDER
    """,
    "it opens a session that nobody started": """
        proactive.send reminder
            opens
            knows {"workspaceId": "w1", "conversationId": "c1"}
            @1 tells c1: REMINDER
        succeeded
            outcome proactive sent/reminder
    """,
    "a close ends what is under way": """
        given session.started; proactive.send reminder; proactive.send followup; failed retryable
        session.close
            closes completed
            ends retry:@2 cancelled
            outcome proactive cancelled/session_closed
            outcome proactive cancelled/session_closed
            outcome session closed/completed
        succeeded @1
            because session_closed
        succeeded @2
            because session_closed
    """,
}


@pytest.mark.parametrize("script", TRANSCRIPTS.values(), ids=TRANSCRIPTS)
def test_transcript(script: str) -> None:
    """SPEC §4, proactive, sentence by sentence.

    SPEC says that a close ends "each flow in progress"; a proactive message that has no result
    yet is read as one.
    """
    assert retell(script) == tidy(script)
