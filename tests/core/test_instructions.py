"""The vocabulary of the flows is closed: STYLE rule 5."""

from dataclasses import FrozenInstanceError, is_dataclass
from typing import get_args

import pytest

from agents_stream.core import instructions


def test_the_union_names_every_instruction() -> None:
    """What a flow may yield is in `Instruction`, frozen; the fold's `match` covers the union."""
    defined = {
        item
        for item in vars(instructions).values()
        if is_dataclass(item) and getattr(item, "__module__", "") == instructions.__name__
    }
    assert set(get_args(instructions.Instruction)) == defined - {instructions.Cause}


def test_instructions_are_values() -> None:
    """STYLE rule 3: data is returned, and nobody changes it on its way."""
    cancel = instructions.Cancel("promos.reply")
    assert cancel == instructions.Cancel("promos.reply")
    with pytest.raises(FrozenInstanceError):
        cancel.name = "other"  # type: ignore[misc]
