"""One RPC of a service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from vtryon.messages import ProtoType
from vtryon_services.runtime.call import Call, Incoming

S = TypeVar("S", bound=ProtoType)
Serve = Callable[[S, Incoming, Call], AsyncGenerator[Any, None]]


class Replies(Enum):
    """What a method gives: events of the grammar, plain messages or their bytes, or one message."""

    EVENTS = "events"
    MESSAGES = "messages"
    ONE = "one"


@dataclass(frozen=True, slots=True)
class Method(Generic[S]):
    """One RPC of a service: its name, its messages, and the generator that serves it.

    Attributes:
        bulk: fields of a request that hold a picture's bytes, and have a limit of their own.
        ends_at_drain: it waits for what happens, and a drain does not wait for it.
    """

    name: str
    request: type[Message]
    start: type[S]
    serve: Serve[S]
    streams_requests: bool = True
    replies: Replies = Replies.EVENTS
    bulk: tuple[str, ...] = ()
    ends_at_drain: bool = False
