"""Consumer groups at the broker: members, generations, session timeouts, committed offsets.

Eager rebalancing, as Kafka's classic protocol has it: who joins stops all; the next generation
begins when everybody has joined again, and who does not come within the rebalance timeout is out.
Partition numbers are given out whole: a member gets the same numbers of every topic.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiokafka.errors import (
    IllegalGenerationError,
    NoError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from tests.simulation.loop import SimLoop

Joined = tuple[str, int]
"""(member id, generation)"""
Committed = tuple[int, str]
"""(offset, what the group keeps beside it)"""


@dataclass(slots=True, eq=False)
class Member:
    """One member, as the coordinator knows it."""

    id: str
    session_s: float
    rebalance_s: float
    last_seen: float
    ticket: "asyncio.Future[Joined] | None" = None


class Group:
    """One consumer group."""

    def __init__(
        self, loop: SimLoop, name: str, partitions: int, rng: random.Random, seen: Counter[str]
    ) -> None:
        self.loop, self.name, self.rng, self.seen = loop, name, rng, seen
        self.partitions = partitions
        self.members: dict[str, Member] = {}
        self.generation = 0
        self.rebalancing = False
        self.assignment: dict[str, frozenset[int]] = {}
        self.offsets: dict[tuple[str, int], Committed] = {}
        self.on_generation: list[Callable[[], None]] = []
        self._next_id = 0

    def join(
        self, member_id: str, session_s: float, rebalance_s: float
    ) -> "asyncio.Future[Joined]":
        """Take a member in; the answer comes when the next generation begins.

        Raises:
            UnknownMemberIdError: the group has gone on without it.

        """
        if member_id and member_id not in self.members:
            raise UnknownMemberIdError
        if not member_id:
            self._next_id += 1
            member_id = f"{self.name}-{self._next_id}"
            now = self.loop.time()
            self.members[member_id] = Member(member_id, session_s, rebalance_s, now)
            self._watch(member_id)
        member = self.members[member_id]
        if member.ticket is not None and not member.ticket.done():
            member.ticket.cancel()
        member.ticket = self.loop.create_future()
        member.last_seen = self.loop.time()
        ticket = member.ticket
        self._rebalance()
        self._complete_if_all_are_here()
        return ticket

    def sync(self, member_id: str, generation: int) -> frozenset[int]:
        """The partition numbers of a member."""
        self._require(member_id, generation)
        return self.assignment[member_id]

    def heartbeat(self, member_id: str, generation: int) -> type[Exception]:
        """A member says that it is alive; the error that it is answered, `NoError` for none."""
        try:
            self._require(member_id, generation)
        except (UnknownMemberIdError, IllegalGenerationError) as error:
            return type(error)
        self.members[member_id].last_seen = self.loop.time()
        answer: type[Exception] = RebalanceInProgressError if self.rebalancing else NoError
        return answer

    def leave(self, member_id: str) -> None:
        """A member goes."""
        self._remove(member_id)

    def commit(self, member_id: str, generation: int, offsets: Mapping[Any, Committed]) -> None:
        """Keep offsets. A member of the generation may still do so while the group rebalances."""
        self._require(member_id, generation)
        self.members[member_id].last_seen = self.loop.time()
        for tp, offset in offsets.items():
            self.offsets[tp[0], tp[1]] = offset

    def _require(self, member_id: str, generation: int) -> None:
        if member_id not in self.members:
            raise UnknownMemberIdError
        if generation != self.generation:
            raise IllegalGenerationError

    def _remove(self, member_id: str) -> None:
        if self.members.pop(member_id, None) is None:
            return
        self.assignment.pop(member_id, None)
        self._rebalance()
        self._complete_if_all_are_here()

    def _watch(self, member_id: str) -> None:
        """Expire a member that has not been heard of for its session timeout."""
        member = self.members.get(member_id)
        if member is None:
            return
        left = member.last_seen + member.session_s - self.loop.time()
        waits = member.ticket is not None and not member.ticket.done()
        if left <= 0 and not waits:
            self.seen[f"session timeouts of {self.name}"] += 1
            self._remove(member_id)
            return
        self.loop.in_world(max(left, 0.1), self._watch, member_id)

    def _rebalance(self) -> None:
        if self.rebalancing:
            return
        self.rebalancing = True
        limit_s = max((one.rebalance_s for one in self.members.values()), default=0.0)
        self.loop.in_world(limit_s, self._give_up_waiting, self.generation)

    def _give_up_waiting(self, generation: int) -> None:
        if not self.rebalancing or self.generation != generation:
            return
        for member in [one for one in self.members.values() if one.ticket is None]:
            self.seen["members that missed a rebalance"] += 1
            del self.members[member.id]
        self._complete_if_all_are_here()

    def _complete_if_all_are_here(self) -> None:
        members = list(self.members.values())
        if not self.rebalancing or any(one.ticket is None for one in members):
            return
        self.rebalancing = False
        self.generation += 1
        self.seen[f"generations of {self.name}"] += 1
        self._assign()
        for member in members:
            ticket, member.ticket = member.ticket, None
            member.last_seen = self.loop.time()
            if ticket is not None and not ticket.done():
                ticket.set_result((member.id, self.generation))
        for hook in self.on_generation:
            hook()

    def _assign(self) -> None:
        """Spread the numbers evenly: as before where that is even, or quite anew."""
        members = list(self.members)
        before, self.assignment = self.assignment, {}
        if not members:
            return
        numbers = list(range(self.partitions))
        share = -(-len(numbers) // len(members))
        taken: dict[str, set[int]] = {member: set() for member in members}
        if self.rng.random() < 0.6:
            for member in members:
                kept = sorted(before.get(member, ()))[:share]
                taken[member] |= set(kept)
        self.rng.shuffle(members)
        for number in numbers:
            if not any(number in owned for owned in taken.values()):
                taken[min(members, key=lambda member: len(taken[member]))].add(number)
        self.assignment = {member: frozenset(owned) for member, owned in taken.items()}
