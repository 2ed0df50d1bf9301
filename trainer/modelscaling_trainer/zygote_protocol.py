"""What an agent and its zygote say to each other: one JSON object a line, over a Unix socket.

The descriptors of a new worker travel with the request for it: those of its commands, its events
and its log. The agent asks for one worker at a time.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from modelscaling.configuration import Message
from modelscaling.mesh import Mesh

DESCRIPTORS = 3
"""How many come with a request for a worker."""


class Fork(Message):
    """Make a worker of the descriptors that come with this."""

    kind: Literal["Fork"] = "Fork"


class ImportFor(Message):
    """Import what training on a mesh needs, so that later workers have it."""

    kind: Literal["ImportFor"] = "ImportFor"
    mesh: Mesh


class Forked(Message):
    """The answer to `Fork`."""

    kind: Literal["Forked"] = "Forked"
    pid: int


class Exited(Message):
    """A worker has ended."""

    kind: Literal["Exited"] = "Exited"
    pid: int
    code: int
    """Negative for the signal that ended it."""


ZygoteRequest = Fork | ImportFor
ZygoteReply = Forked | Exited

_REQUESTS: TypeAdapter[ZygoteRequest] = TypeAdapter(
    Annotated[ZygoteRequest, Field(discriminator="kind")]
)
_REPLIES: TypeAdapter[ZygoteReply] = TypeAdapter(
    Annotated[ZygoteReply, Field(discriminator="kind")]
)


def encode(message: ZygoteRequest | ZygoteReply) -> bytes:
    """Return the message as one line."""
    return message.model_dump_json().encode() + b"\n"


def parse_request(line: bytes) -> ZygoteRequest:
    """Return the request in a line; pydantic's `ValidationError` if there is none."""
    return _REQUESTS.validate_json(line)


def parse_reply(line: bytes) -> ZygoteReply:
    """Return the reply in a line; pydantic's `ValidationError` if there is none."""
    return _REPLIES.validate_json(line)
