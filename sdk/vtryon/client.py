"""The front door: `Client.try_on`."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from vtryon.arguments import argument_error, check_setting, check_timeout
from vtryon.channel import Channel, Tls, Token, check_connection
from vtryon.errors import ProtocolError, SettingsError
from vtryon.headers import check_request_id
from vtryon.health import wait_until_serving
from vtryon.jobs import Jobs
from vtryon.messages import request_message
from vtryon.options import DEFAULT_PROMPT, make_options, outgoing_pictures
from vtryon.pictures import digest
from vtryon.retry import NO_RETRY, RetryPolicy
from vtryon.run import Received, Result, Run
from vtryon.stages import Decoding, LatentEncoder, Sampling, TextEncoder
from vtryon.stream import TRY_ON, StreamCall
from vtryon.tensors import Tensor, check_tensor
from vtryon.types import (
    ImageFormat,
    Numerics,
    PayloadKind,
    PreviewPolicy,
    Priority,
    Profile,
    ResumePoint,
    TryOnStart,
)

if TYPE_CHECKING:
    from vtryon.pictures import PictureSource


class Client:
    """A connection to a vtryon mesh.

    Use as ``async with vtryon.Client("localhost:50050") as client``. One client serves any number
    of requests at once; leaving the context cancels those still open.

    Args:
        target: "host:port" or "unix:/path" of the pipeline.
        tls: how to know the server; None for plain text.
        token: a bearer token, or a function that gives a fresh one for each call.
        retry: True waits for a server that starts or restarts and for capacity, within each
            call's deadline, and sends a call again whose connection broke before its first event;
            False sends each call once; a `RetryPolicy` says it in numbers.

    Raises:
        SettingsError: the target or the token can't be one, or an argument is of another type.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None = None,
        token: Token | None = None,
        retry: RetryPolicy | bool = True,
    ) -> None:
        check_connection(target, tls, token)
        if isinstance(retry, bool):
            retry = RetryPolicy() if retry else NO_RETRY
        check_setting("retry", retry, RetryPolicy, "True, False or a RetryPolicy")
        self._target = target
        self._tls = tls
        self._token = token
        self._retry = retry
        self._channel: Channel | None = None

    async def __aenter__(self) -> Self:
        self._channel = Channel(self._target, tls=self._tls, token=self._token, retry=self._retry)
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
        """Give the same connection for one tenant's requests: shares are fair among tenants.

        For programs that serve several; a mesh's edge takes the tenant from the token instead.
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
        negative_prompt: str | None = None,
        steps: int | None = None,
        true_cfg_scale: float | None = None,
        seed: int | None = None,
        width: int | None = None,
        height: int | None = None,
        profile: Profile | str | None = None,
        numerics: Numerics | None = None,
        strength: float | None = None,
        sigmas: Sequence[float] = (),
        previews: PreviewPolicy | bool = True,
        priority: Priority | str | None = None,
        format: ImageFormat | str | None = None,  # noqa: A002
        quality: int | None = None,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
        resume: ResumePoint | None = None,
        resume_latents: Tensor | None = None,
        resume_every: int = 0,
    ) -> Run[Result]:
        """Put the garment on the person.

        Nothing is sent before the run is awaited, iterated or entered. What is left None is the
        server's choice, and told in the `Accepted` event.

        Args:
            person: a path, the bytes of a PNG, JPEG or WebP file, an open binary file, a PIL image,
                an array of uint8, or a `Picture`.
            garment: the same; or up to three of them; or None, to edit the person by the prompt.
            prompt: what to do, speaking of "picture 1" (the person) and "picture 2" (the garment).
            negative_prompt: what to keep away from; with `true_cfg_scale` above 1 it turns guidance
                on, at twice the cost.
            steps: denoise steps, 1 to 200.
            true_cfg_scale: strength of guidance.
            seed: the same seed gives the same picture.
            width: of the result in pixels, a multiple of 16; with `height`. None: the size at
                which the person is encoded.
            height: of the result in pixels.
            profile: a named set of numerics: "diffusers", "comfy" or "lightning".
            numerics: the same with single choices changed; not with `profile`.
            strength: below 1 starts from the noised person instead of from noise.
            sigmas: noise levels that never rise, in place of a schedule; a first level below 1
                starts from the noised person.
            previews: a small picture after each step; or a policy; or False.
            priority: INTERACTIVE by default.
            format: of the result; PNG by default.
            quality: of a JPEG or WebP, 1 to 100.
            timeout_seconds: the deadline of the whole request, from connecting to the picture.
                None: the server's default, after a wait for it as `retry` allows.
            request_id: what logs and traces call the request.
            resume: go on behind these steps of an equal request, seed included.
            resume_latents: what they came to: the `ResumeChunk`s of that request, joined.
            resume_every: get resume points after every n-th step.

        Raises:
            RequestError: at once, for what can be told without a server.
        """
        options = make_options(
            prompt=prompt,
            negative_prompt=negative_prompt,
            profile=profile,
            numerics=numerics,
            steps=steps,
            true_cfg_scale=true_cfg_scale,
            seed=seed,
            strength=strength,
            sigmas=sigmas,
            width=width,
            height=height,
            previews=previews,
            priority=priority,
            format=format,
            quality=quality,
        )
        start = TryOnStart(options=options, resume=resume, resume_every=resume_every)
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
            content = await asyncio.to_thread(digest, said)
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


def _result(received: Received) -> Result:
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
