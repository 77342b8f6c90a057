"""Does a Kafka broker answer at an address? One request, no client, no event loop."""

import socket
import struct
from typing import Final

_API_VERSIONS: Final = 18
_CORRELATION: Final = 0x61737472  # "astr": anything that tells our answer from noise
_LIMIT_S: Final = 2.0
_HEADER: Final = struct.Struct(">ii")


def answers(host: str, port: int, limit_s: float = _LIMIT_S) -> bool:
    """Ask for the versions that the broker speaks; True if something answers as Kafka does.

    A broker accepts requests only once it has joined its cluster, so this also means ready.
    """
    client = b"agents-stream"
    body = struct.pack(">hhih", _API_VERSIONS, 0, _CORRELATION, len(client)) + client
    try:
        with socket.create_connection((host, port), timeout=limit_s) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            answer = b""
            while len(answer) < _HEADER.size:
                part = connection.recv(_HEADER.size - len(answer))
                if not part:
                    return False
                answer += part
    except OSError:  # refused, reset or silent: no broker
        return False
    _size, correlation = _HEADER.unpack(answer)
    return bool(correlation == _CORRELATION)
