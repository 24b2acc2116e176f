"""One RPC of a service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from vtryon.messages import ProtoType
from vtryon_services.rpc.call import Call, Incoming

S = TypeVar("S", bound=ProtoType)
Serve = Callable[[S, Incoming, Call], AsyncGenerator[Any, None]]


class Replies(Enum):
    """Responses of a method: events of the grammar, plain messages, bytes, or one message."""

    EVENTS = "events"
    MESSAGES = "messages"
    ONE = "one"


@dataclass(frozen=True, slots=True)
class Method(Generic[S]):
    """One RPC of a service: its name, its messages, and the generator that implements it.

    Attributes:
        bulk: request fields with a picture's bytes, which have a separate limit.
        ends_at_drain: a long poll, which draining ends instead of waiting for it.
    """

    name: str
    request: type[Message]
    start: type[S]
    serve: Serve[S]
    streams_requests: bool = True
    replies: Replies = Replies.EVENTS
    bulk: tuple[str, ...] = ()
    ends_at_drain: bool = False
