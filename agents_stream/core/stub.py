"""What is kept of a closed session: all that its later decisions need, and nothing else.

A closed session takes events for one purpose only: to tell that it is closed, or to be opened
afresh. That needs who it is, how far it has come (G2, G9: the journal's position, `seen`, the last
ids), its version, and orders that are still under way. What the customer said about himself is none
of it: it leaves the table at once, and stays in the journal for as long as that is kept.
"""

from dataclasses import replace

import orjson

from agents_stream.core.session import SessionRecord, empty_state


def stub(record: SessionRecord) -> SessionRecord:
    """The record as it is kept: a closed session without its state, an open one as it is.

    A state that had been touched becomes `{}`, which differs from the state of a session opened
    afresh: so its opening raises the version, as it would have with the whole state (SPEC §3).
    """
    if record.status == "open" or not record.state:
        return record
    sort = orjson.OPT_SORT_KEYS
    is_untouched = orjson.dumps(record.state, option=sort) == orjson.dumps(
        empty_state(), option=sort
    )
    return record if is_untouched else replace(record, state={})
