"""Prompts and previews are encrypted with a key per job, stored with the job's pictures.

The database holds only the ciphertext. Deleting a job's folder deletes its key, and its remains in
the database, its journal and its backups become unreadable.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from cachetools import LRUCache
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vtryon.errors import Reason, RequestError, StageError
from vtryon.types import TryOnOptions
from vtryon.v1 import job_pb2, pipeline_pb2
from vtryon_services.jobs.records import Kept
from vtryon_services.storage.artifacts import Artifacts

_KEYS_REMEMBERED = 4096
_NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class Seal:
    """The key of one job."""

    job_id: str
    cipher: AESGCM

    def close(self, plain: bytes) -> bytes:
        """Encrypt; empty stays empty."""
        if not plain:
            return b""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self.cipher.encrypt(nonce, plain, self.job_id.encode())

    def open(self, sealed: bytes) -> bytes:
        """Decrypt data of `close`.

        Raises:
            StageError: it was encrypted with another key.
        """
        if not sealed:
            return b""
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self.cipher.decrypt(nonce, body, self.job_id.encode())
        except InvalidTag:
            words = f"job {self.job_id}: the key in the artifact store does not fit the database"
            raise StageError(words) from None

    def close_prompts(self, options: TryOnOptions) -> bytes:
        """Encrypt the texts of a request."""
        texts = TryOnOptions(prompt=options.prompt, negative_prompt=options.negative_prompt)
        return self.close(texts.to_proto().SerializeToString())

    def open_prompts(self, options: TryOnOptions, sealed: bytes) -> TryOnOptions:
        """Give options with their texts.

        Raises:
            StageError: they were encrypted with another key.
        """
        message = pipeline_pb2.TryOnOptions.FromString(self.open(sealed))
        texts = TryOnOptions.from_proto(message)
        return replace(options, prompt=texts.prompt, negative_prompt=texts.negative_prompt)


class Seals:
    """The keys of jobs, those used last in memory."""

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._known: LRUCache[str, Seal] = LRUCache(_KEYS_REMEMBERED)

    async def make(self, job_id: str) -> Seal:
        """Make and keep the key of a new job.

        Raises:
            StorageError: it can't be kept.
        """
        key = AESGCM.generate_key(256)
        await self._artifacts.put(_name(job_id), key)
        seal = self._known[job_id] = Seal(job_id, AESGCM(key))
        return seal

    async def of(self, job_id: str) -> Seal | None:
        """Give the key of a job; None where it was erased.

        Raises:
            StorageError: it can't be read.
        """
        if (seal := self._known.get(job_id)) is None:
            try:
                key = await self._artifacts.get(_name(job_id))
            except RequestError as error:
                if error.reason is not Reason.NOT_FOUND:
                    raise
                return None
            seal = self._known[job_id] = Seal(job_id, AESGCM(key))
        return seal

    async def erase(self, job_id: str) -> None:
        """Delete the key of a job: its sealed data becomes unreadable.

        Raises:
            StorageError: the key can't be deleted.
        """
        self._known.pop(job_id, None)
        await self._artifacts.erase([_name(job_id)])

    async def opened(self, kept: Kept) -> job_pb2.Job:
        """Give a job with its prompts; without them where they were erased.

        Raises:
            StorageError: the key can't be read.
        """
        if kept.sealed and (seal := await self.of(kept.message.id)) is not None:
            texts = pipeline_pb2.TryOnOptions.FromString(seal.open(kept.sealed))
            kept.message.options.MergeFrom(texts)
        return kept.message


def _name(job_id: str) -> str:
    return f"{job_id}/key"
