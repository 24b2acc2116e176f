"""`Client`, and `Client.try_on`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self, Unpack, overload

from vtryon.arguments import argument_error, check_setting, check_timeout
from vtryon.errors import ProtocolError, SettingsError
from vtryon.health import wait_until_serving
from vtryon.jobs import Jobs
from vtryon.messages import request_message
from vtryon.options import DEFAULT_PROMPT, TryOnArguments, make_options, outgoing_pictures
from vtryon.pictures import digest
from vtryon.run import Result, Run, StreamedResult
from vtryon.stages import Decoding, LatentEncoder, Sampling, TextEncoder
from vtryon.tensors import Tensor, check_tensor
from vtryon.threads import run_on_bytes
from vtryon.types import (
    PayloadKind,
    ResumePoint,
    TryOnOptions,
    TryOnStart,
)
from vtryon.wire.channel import Channel, Tls, Token, check_connection
from vtryon.wire.headers import check_request_id
from vtryon.wire.retry import NO_RETRY, RetryPolicy
from vtryon.wire.stream import TRY_ON, StreamCall
from vtryon.wire.transport import Transport

if TYPE_CHECKING:
    from vtryon.pictures import PictureSource


class Client:
    """A connection to a vtryon server or mesh.

    Use as ``async with vtryon.Client("localhost:50050") as client``. One client serves any number
    of concurrent requests; leaving the context cancels those still open.

    Args:
        target: "host:port" or "unix:/path" of the pipeline.
        tls: how to verify the server and to authenticate; None for plain text.
        token: a bearer token, or a function that returns a fresh one for each call.
        retry: True waits within each call's deadline for a server that is starting or has no
            capacity, and resends a call whose connection broke before its first event. False
            sends each call once. A `RetryPolicy` sets the limits.
        transport: opens the connection in place of `target`, `tls` and `token`: for tests without a
            server, `vtryon.testing.InProcess`.

    Raises:
        SettingsError: the target, the token or the type of an argument is invalid, or an argument
            has no effect with the transport.
    """

    @overload
    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None = None,
        token: Token | None = None,
        retry: RetryPolicy | bool = True,
    ) -> None: ...

    @overload
    def __init__(self, *, transport: Transport, retry: RetryPolicy | bool = True) -> None: ...

    def __init__(
        self,
        target: str | None = None,
        *,
        tls: Tls | None = None,
        token: Token | None = None,
        retry: RetryPolicy | bool = True,
        transport: Transport | None = None,
    ) -> None:
        check_connection(target, tls, token, transport)
        if isinstance(retry, bool):
            retry = RetryPolicy() if retry else NO_RETRY
        check_setting("retry", retry, RetryPolicy, "True, False or a RetryPolicy")
        self._target = target
        self._tls = tls
        self._token = token
        self._retry = retry
        self._transport = transport
        self._channel: Channel | None = None

    async def __aenter__(self) -> Self:
        self._channel = Channel(
            self._target,
            tls=self._tls,
            token=self._token,
            retry=self._retry,
            transport=self._transport,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        self._channel = None

    @property
    def channel(self) -> Channel:
        """The open connection.

        Raises:
            SettingsError: the client was not entered, or was left.
        """
        if self._channel is None:
            raise SettingsError("the client is not open: use `async with vtryon.Client(...)`")
        return self._channel

    def acting_for(self, tenant: str) -> Client:
        """Return the same connection for the requests of one tenant, for fair scheduling.

        For programs that serve several tenants. Behind an edge, the token names the tenant instead.
        """
        view = copy.copy(self)
        view._channel = self.channel.acting_for(tenant)
        return view

    async def wait_ready(self, timeout_seconds: float = 120.0) -> None:
        """Wait until the server can be reached and its health service says that it serves.

        Raises:
            SettingsError: the server can't be connected as this client is set up.
            AccessError: the server refuses this client.
            UnavailableError: it did not serve in time.
        """
        if timeout_seconds is None:
            raise argument_error("timeout_seconds", "takes a positive number of seconds, not None")
        check_timeout(timeout_seconds)
        await wait_until_serving(self.channel, timeout_seconds)

    @property
    def latent_encoder(self) -> LatentEncoder:
        """The latent encoder alone, where the target serves it."""
        return LatentEncoder(self.channel)

    @property
    def text_encoder(self) -> TextEncoder:
        """The text encoder alone, where the target serves it."""
        return TextEncoder(self.channel)

    @property
    def sampling(self) -> Sampling:
        """The sampler alone, where the target serves it."""
        return Sampling(self.channel)

    @property
    def decoding(self) -> Decoding:
        """The decoder alone, where the target serves it."""
        return Decoding(self.channel)

    @property
    def jobs(self) -> Jobs:
        """Try-ons that outlive this connection, where the target serves jobs."""
        return Jobs(self.channel)

    def try_on(
        self,
        person: PictureSource,
        garment: PictureSource | Sequence[PictureSource] | None = None,
        prompt: str = DEFAULT_PROMPT,
        *,
        options: TryOnOptions | None = None,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
        resume: ResumePoint | None = None,
        resume_latents: Tensor | None = None,
        resume_every: int = 0,
        **arguments: Unpack[TryOnArguments],
    ) -> Run[Result]:
        """Generate a picture of the person wearing the garment.

        Nothing is sent before the run is awaited, iterated or entered. For options that are not set
        the server chooses a value and reports it in the `Accepted` event.

        Args:
            person: a path, the bytes of a PNG, JPEG or WebP file, an open binary file, a PIL image,
                an array of uint8, or a `Picture`.
            garment: the same, or a sequence of up to three; None edits the person by the prompt.
            prompt: the instruction; "picture 1" is the person and "picture 2" the garment.
            options: the prompt and all options as one value; excludes `prompt` and `arguments`.
                Unset in it, the prompt is empty and there are no previews.
            timeout_seconds: deadline of the whole request, connecting included. None: the server's
                default, after waiting for a connection as long as `retry` allows.
            request_id: identifies the request in logs and traces.
            resume: a resume point of an equal request, seed included, to continue from.
            resume_latents: the latents of `resume`: the joined data of its `ResumeChunk`s.
            resume_every: receive a resume point after every n-th step; 0 for none.
            **arguments: steps, seed, width, height and so on: `vtryon.options.TryOnArguments`.

        Raises:
            RequestError: an argument is invalid, as far as that is known without a server.
            TypeError: there is no option of that name.
        """
        chosen = make_options(options, prompt=prompt, **arguments)
        start = TryOnStart(options=chosen, resume=resume, resume_every=resume_every)
        request_message(start)  # refuses now what could not be sent
        check_timeout(timeout_seconds)
        if request_id is not None:
            check_request_id(request_id)
        if resume_latents is not None:
            check_tensor("resume_latents", resume_latents)
        channel = self.channel

        async def open_call(seconds: float | None) -> StreamCall:
            outgoing = await outgoing_pictures(person, garment)
            resumed = resume_latents and resume_latents.outgoing(PayloadKind.RESUME_LATENTS)
            # One garment is worn by many: the first, or else the person, says where to go.
            said = outgoing[:2][-1].data
            assert isinstance(said, bytes)
            content = await run_on_bytes(len(said), digest, said)
            return StreamCall(
                channel,
                TRY_ON,
                start,
                [*outgoing, resumed] if resumed else outgoing,
                timeout_seconds=seconds,
                request_id=request_id,
                content_digest=content,
            )

        return Run(lambda: channel.attempts(timeout_seconds), open_call, _result)


def _result(received: StreamedResult) -> Result:
    finished, accepted = received.finished, received.accepted
    if finished.ledger is None:
        raise ProtocolError("the server sent no ledger")
    return Result(
        received.picture(),
        accepted.seed,
        accepted,
        received.stages,
        finished.ledger,
        finished.fits,
    )
