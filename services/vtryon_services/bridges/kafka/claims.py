"""The claim check: large payloads are stored elsewhere, and messages reference them."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
import uuid
from collections.abc import Sequence

from vtryon.errors import Reason, RequestError
from vtryon.wire.payloads import Buffer
from vtryon_services.bridges.kafka.records import Claim, Content
from vtryon_services.storage.artifacts import Artifacts

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,7}")

_RESULTS, _REQUESTS = "results", "requests"


class ClaimStore:
    """Converts bytes to a record's `Content`, and back.

    Args:
        limit_bytes: maximum inline bytes of one message.
    """

    def __init__(self, artifacts: Artifacts, limit_bytes: int) -> None:
        self._artifacts = artifacts
        self._limit_bytes = limit_bytes

    async def pack(
        self, several: Sequence[Buffer], *, taken_bytes: int = 0, job_id: str = ""
    ) -> list[Content]:
        """Keep payloads inline while they fit, small ones first, and store the rest.

        Args:
            several: the payloads.
            taken_bytes: bytes already in the message.
            job_id: the job that they belong to, with which they are erased.

        Raises:
            UnavailableError: the claim-check store is not writable.
        """
        packed = [Content() for _ in several]
        room = self._limit_bytes - taken_bytes
        for index in sorted(range(len(several)), key=lambda one: len(several[one])):
            data = several[index]
            if len(data) <= room:
                room -= len(data)
                packed[index] = Content(inline=bytes(data))
            else:
                packed[index] = Content(claim=await self._keep(data, job_id))
        return packed

    async def _keep(self, data: Buffer, job_id: str) -> Claim:
        # By job, or by hour, so that what is old is found without looking at the rest.
        hour = time.strftime("%Y%m%dT%H", time.gmtime())
        folder = f"{_RESULTS}/{job_id}" if job_id else hour
        name = f"{folder}/{uuid.uuid4().hex}"
        digest = await asyncio.to_thread(_sha256, data)
        await self._artifacts.put(name, data)
        return Claim(name, digest, len(data))

    async def reserve(self, job_id: str, digest: str) -> None:
        """Have a job's id stand for one request, of whichever bridge.

        Raises:
            RequestError: ALREADY_EXISTS; it stands for another.
            UnavailableError: the claim store can't be used.
        """
        name = f"{_REQUESTS}/{job_id}"
        if await self._artifacts.put_new(name, digest.encode()):
            return
        if (await self._artifacts.get(name)).decode() != digest:
            raise RequestError(
                "this request id stands for another request already",
                reason=Reason.ALREADY_EXISTS,
                metadata={"job_id": job_id},
            )

    async def assign(self, name: str, job_id: str) -> None:
        """Note that a caller's object is a job's: it is erased with the job.

        Objects that the bridge wrote itself stay: they belong to the jobs that they were made for.

        Raises:
            UnavailableError: the claim store can't be written to.
        """
        if name.partition("/")[0] not in {_RESULTS, _REQUESTS}:
            await self._artifacts.put(f"{_given(job_id)}/{_sha256(name.encode())}", name.encode())

    async def erase(self, job_id: str) -> None:
        """Delete the stored results of a job, and the objects assigned to it.

        Raises:
            UnavailableError: the claim-check store is unusable.
        """
        for note in await self._artifacts.names(_given(job_id)):
            await self._artifacts.erase([(await self._artifacts.get(note)).decode()])
        await self._artifacts.erase_folders([f"{_RESULTS}/{job_id}"])

    async def unpack(self, field: str, content: Content, limit_bytes: int) -> bytes:
        """Return the bytes of a record's content.

        Raises:
            RequestError: they are missing, too large, or differ from the claim.
            UnavailableError: the claim-check store is not readable.
        """
        inline, claim = content.inline, content.claim
        if (inline is None) == (claim is None):
            raise _invalid(f"{field}: takes either `inline` or `claim`")
        size = len(inline or b"") if claim is None else claim.byte_length
        if size > limit_bytes:
            raise RequestError(
                f"{field}: {size} bytes are over the limit of {limit_bytes}",
                reason=Reason.PAYLOAD_TOO_LARGE,
                metadata={"limit_bytes": str(limit_bytes)},
            )
        if claim is None:
            return inline or b""
        if not _NAME.fullmatch(claim.name):
            raise _invalid(f"{field}: a claim's name is a path of letters, digits, . _ and -")
        if await self._artifacts.size(claim.name) != size:
            raise _invalid(f"{field}: what was claimed has another length")
        data = await self._artifacts.get(claim.name)
        if await asyncio.to_thread(_sha256, data) != claim.sha256:
            raise _invalid(f"{field}: what was claimed has another digest")
        return data


def _given(job_id: str) -> str:
    return f"{_RESULTS}/{job_id}/given"


def _sha256(data: Buffer) -> str:
    return hashlib.sha256(data).hexdigest()


def _invalid(message: str) -> RequestError:
    return RequestError(message, reason=Reason.PAYLOAD_INVALID)
