"""The front door: `Client.try_on`."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from vtryon.channel import Channel, Tls, Token
from vtryon.errors import ProtocolError, RequestError, SettingsError
from vtryon.pictures import digest
from vtryon.run import Received, Result, Run
from vtryon.stages import Decoding, LatentEncoder, Sampling, TextEncoder, image_payload
from vtryon.stream import TRY_ON, StreamCall
from vtryon.types import (
    ImageFormat,
    Numerics,
    PayloadKind,
    PreviewPolicy,
    Priority,
    Profile,
    TryOnOptions,
    TryOnStart,
)

if TYPE_CHECKING:
    from vtryon.pictures import PictureSource

DEFAULT_PROMPT = "Dress the person in picture 1 in the garment from picture 2"


class Client:
    """A connection to a vtryon mesh.

    Use as ``async with vtryon.Client("localhost:50050") as client``. One client serves any number
    of requests at once; leaving the context cancels those still open.

    Args:
        target: "host:port" or "unix:/path" of the pipeline.
        tls: how to know the server; None for plain text.
        token: a bearer token, or a function that gives a fresh one for each call.
    """

    def __init__(self, target: str, *, tls: Tls | None = None, token: Token | None = None) -> None:
        self._target = target
        self._tls = tls
        self._token = token
        self._channel: Channel | None = None

    async def __aenter__(self) -> Self:
        self._channel = Channel(self._target, tls=self._tls, token=self._token)
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
        priority: Priority | None = None,
        format: ImageFormat | None = None,  # noqa: A002
        quality: int | None = None,
        timeout_seconds: float | None = None,
        request_id: str | None = None,
    ) -> Run[Result]:
        """Put the garment on the person.

        Nothing is sent before the run is awaited, iterated or entered. What is left None is the
        server's choice, and told in the `Accepted` event.

        Args:
            person: a path, the bytes of a PNG, JPEG or WebP file, or a PIL image.
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
            sigmas: the noise levels themselves, in place of a schedule.
            previews: a small picture after each step; or a policy; or False.
            priority: INTERACTIVE by default.
            format: of the result; PNG by default.
            quality: of a JPEG or WebP, 1 to 100.
            timeout_seconds: the deadline of the whole request.
            request_id: what logs and traces call the request.

        Raises:
            RequestError: at once, for what can be told without a server.
        """
        options = TryOnOptions(
            prompt=prompt,
            negative_prompt=negative_prompt,
            numerics=_numerics(profile, numerics),
            steps=steps,
            true_cfg_scale=true_cfg_scale,
            seed=seed,
            strength=strength,
            sigmas=tuple(sigmas),
            width=width,
            height=height,
            previews=_previews(previews),
            priority=priority,
            format=format,
            quality=quality,
        )
        pictures = [(PayloadKind.PERSON_IMAGE, person)]
        pictures += [(PayloadKind.GARMENT_IMAGE, one) for one in _several(garment)]
        channel = self.channel

        async def open_call() -> StreamCall:
            outgoing = [await image_payload(kind, source) for kind, source in pictures]
            # One garment is worn by many: the first, or else the person, says where to go.
            said = outgoing[:2][-1].data
            assert isinstance(said, bytes)
            content = await asyncio.to_thread(digest, said)
            return StreamCall(
                channel,
                TRY_ON,
                TryOnStart(options=options),
                outgoing,
                timeout_seconds=timeout_seconds,
                request_id=request_id,
                content_digest=content,
            )

        return Run(open_call, _result)


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


def _numerics(profile: Profile | str | None, numerics: Numerics | None) -> Numerics | None:
    if profile is None:
        return numerics
    if numerics is not None:
        raise RequestError("give a profile or numerics, not both")
    try:
        return Numerics(profile=Profile(profile))
    except ValueError:
        known = ", ".join(Profile)
        raise RequestError(f"no profile {profile!r}; there are {known}") from None


def _previews(wanted: PreviewPolicy | bool) -> PreviewPolicy | None:
    if isinstance(wanted, PreviewPolicy):
        return wanted
    return PreviewPolicy() if wanted else None


def _several(garment: PictureSource | Sequence[PictureSource] | None) -> list[PictureSource]:
    if garment is None:
        return []
    return list(garment) if isinstance(garment, (list, tuple)) else [garment]  # type: ignore[list-item]
