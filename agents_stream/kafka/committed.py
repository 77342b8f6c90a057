"""Committed offsets, as the group's coordinator tells them, or not at all.

A coordinator that is still loading the group (a broker that has just been started again), or that
is none any more, answers a question for committed offsets with an error for the whole request and
no partition. aiokafka 0.14 looks only at the partitions' errors: it takes the empty answer for
"nothing was ever committed". A group would begin anew at the first record, or refuse to begin,
because it asked a second too early. Here the error counts, and aiokafka asks again.
"""

from typing import Any, Final

from aiokafka import errors
from aiokafka.protocol.commit import OffsetFetchRequest

_MOVED: Final = (errors.NotCoordinatorForGroupError, errors.GroupCoordinatorNotAvailableError)


def heed_coordinator(consumer: Any) -> None:
    """Make a consumer of a group see the errors of a whole question for committed offsets."""
    coordinator = consumer._coordinator  # noqa: SLF001 - aiokafka has no public hook
    original = coordinator._send_req  # noqa: SLF001

    async def send(request: Any) -> Any:
        response = await original(request)
        if isinstance(request, OffsetFetchRequest) and (code := getattr(response, "error_code", 0)):
            error = errors.for_code(code)()
            if isinstance(error, _MOVED):
                coordinator.coordinator_dead()
            # A retriable one is asked again by aiokafka's own loop.
            raise error
        return response

    coordinator._send_req = send  # noqa: SLF001
