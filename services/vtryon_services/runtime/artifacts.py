"""Pictures and tensors that outlive a call: in a folder, or in storage that speaks S3."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from vtryon.errors import Reason, RequestError, SettingsError, UnavailableError


class Artifacts:
    """Bytes by name; what is written is there whole, or not at all."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @classmethod
    def open(cls, url: str) -> Artifacts:
        """Open a folder, made where there is none, or a bucket.

        Raises:
            SettingsError: it can't be used.
        """
        try:
            if "://" in url:
                return cls(from_url(url))
            return cls(LocalStore(str(Path(url).absolute()), mkdir=True))
        except (BaseError, ValueError, OSError) as error:
            raise SettingsError(f"artifacts can't be kept at {url}: {error}") from None

    async def put(self, name: str, data: bytes | bytearray | memoryview) -> str:
        """Write, and give the name.

        Raises:
            UnavailableError: the storage can't be written to.
        """
        try:
            await obstore.put_async(self._store, name, bytes(data))
        except (BaseError, OSError) as error:
            raise UnavailableError(_failure(error)) from None
        return name

    async def get(self, name: str) -> bytes:
        """Read.

        Raises:
            RequestError: NOT_FOUND; it was erased.
            UnavailableError: the storage can't be read.
        """
        try:
            found = await obstore.get_async(self._store, name)
            return bytes(await found.bytes_async())
        except (NotFoundError, FileNotFoundError):
            raise RequestError("the bytes are gone", reason=Reason.NOT_FOUND) from None
        except (BaseError, OSError) as error:
            raise UnavailableError(_failure(error)) from None

    async def size(self, name: str) -> int:
        """Tell how many bytes there are of that name.

        Raises:
            RequestError: NOT_FOUND; it was erased.
            UnavailableError: the storage can't be read.
        """
        try:
            return int((await obstore.head_async(self._store, name))["size"])
        except (NotFoundError, FileNotFoundError):
            raise RequestError("the bytes are gone", reason=Reason.NOT_FOUND) from None
        except (BaseError, OSError) as error:
            raise UnavailableError(_failure(error)) from None

    async def erase(self, names: Iterable[str]) -> None:
        """Delete what is there of these.

        Raises:
            UnavailableError: the storage can't be written to.
        """
        for name in names:
            try:
                await obstore.delete_async(self._store, name)
            except (NotFoundError, FileNotFoundError):
                continue
            except (BaseError, OSError) as error:
                raise UnavailableError(_failure(error)) from None

    async def erase_before(self, moment: datetime) -> int:
        """Delete what was written earlier, and tell how much that was.

        Raises:
            UnavailableError: the storage can't be used.
        """
        try:
            everything = [one async for batch in self._store.list() for one in batch]
        except (BaseError, OSError) as error:
            raise UnavailableError(_failure(error)) from None
        old = [one["path"] for one in everything if one["last_modified"] < moment]
        await self.erase(old)
        return len(old)

    async def erase_folders(self, folders: Iterable[str]) -> None:
        """Delete all that is in these, also what an attempt left that died.

        Raises:
            UnavailableError: the storage can't be used.
        """
        for folder in folders:
            try:
                found = [one["path"] async for batch in self._store.list(folder) for one in batch]
            except (BaseError, OSError) as error:
                raise UnavailableError(_failure(error)) from None
            await self.erase(found)


def _failure(error: Exception) -> str:
    """Say what failed, without a path."""
    return f"the storage failed ({type(error).__name__})"
