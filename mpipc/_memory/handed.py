"""Memory through a pipe, which cannot hold it: whoever unpickles it asks its sender for it, and the sender holds it
until then.

That is how multiprocessing sends descriptors, and by the same thread. As there, it can be unpickled once, and only
while the sender lives. A receiver that is not of the family gets a copy.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from mpipc._core import current
from mpipc._memory.memory import Memory, adopt
from mpipc._stdlib.private import resource_sharer

__all__ = ["hand_out", "take"]


def hand_out(memory: Memory) -> Any:
    """What another process calls take() with."""
    held = [memory]

    def send(connection: Any, pid: int) -> None:
        block = held[0].block
        with suppress(EOFError, OSError):  # it has died
            connection.send((block.family.ticket, block.index, block.serial))
            if not connection.recv():
                connection.send_bytes(held[0])

    return resource_sharer().register(send, held.clear)


def take(identifier: Any) -> Memory | bytes:
    """The memory, or a copy of what is in it. OSError, EOFError: the sender has gone."""
    with resource_sharer().get_connection(identifier) as connection:
        ticket, index, serial = connection.recv()
        if ticket == current().ticket:
            with suppress(OSError):
                memory = adopt(index, serial)
                connection.send(True)  # now we are a holder
                return memory
        connection.send(False)
        return connection.recv_bytes()  # type: ignore[no-any-return]
