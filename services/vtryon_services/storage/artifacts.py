"""Pictures and tensors that outlive a call: in a folder, or in storage that speaks S3."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import LocalStore, ObjectStore, from_url

from vtryon.errors import Reason, RequestError, SettingsError
from vtryon_services.storage.outage import StorageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

# A store that is away is said to be so within the time that a caller waits.
_CLIENT: ClientConfig = {"timeout": timedelta(seconds=60), "connect_timeout": timedelta(seconds=5)}
_RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}


class Artifacts:
    """Object storage by name; a written object is complete or absent.

    Args:
        folder: the folder of the objects, if they are files: readable by their owner only.
    """

    def __init__(self, store: ObjectStore, folder: Path | None = None) -> None:
        self._store = store
        self._folder = folder

    @classmethod
    def open(cls, url: str) -> Artifacts:
        """Open a folder, created if missing, or a bucket.

        Raises:
            SettingsError: it is unusable.
        """
        try:
            if "://" in url:
                return cls(from_url(url, client_options=_CLIENT, retry_config=_RETRIES))
            folder = Path(url).absolute()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return cls(LocalStore(str(folder), automatic_cleanup=True), folder)
        except (BaseError, ValueError, OSError) as error:
            raise SettingsError(f"artifacts can't be kept at {url}: {error}") from None

    async def put(self, name: str, data: bytes | bytearray | memoryview) -> str:
        """Write, and give the name.

        Raises:
            StorageError: the storage can't be written to.
        """
        try:
            await obstore.put_async(self._store, name, bytes(data))
            if self._folder is not None:
                (self._folder / name).chmod(0o600)
        except (BaseError, OSError) as error:
            raise StorageError(_failure(error)) from None
        return name

    async def put_new(self, name: str, data: bytes) -> bool:
        """Write an object unless its name exists; return whether it was written.

        Raises:
            StorageError: the storage is not writable.
        """
        try:
            await obstore.put_async(self._store, name, data, mode="create")
            if self._folder is not None:
                (self._folder / name).chmod(0o600)
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise StorageError(_failure(error)) from None
        return True

    async def get(self, name: str) -> bytes:
        """Read.

        Raises:
            RequestError: NOT_FOUND; it was erased.
            StorageError: the storage can't be read.
        """
        try:
            found = await obstore.get_async(self._store, name)
            return bytes(await found.bytes_async())
        except (NotFoundError, FileNotFoundError):
            raise RequestError("the bytes are gone", reason=Reason.NOT_FOUND) from None
        except (BaseError, OSError) as error:
            raise StorageError(_failure(error)) from None

    async def size(self, name: str) -> int:
        """Tell how many bytes there are of that name.

        Raises:
            RequestError: NOT_FOUND; it was erased.
            StorageError: the storage can't be read.
        """
        try:
            return int((await obstore.head_async(self._store, name))["size"])
        except (NotFoundError, FileNotFoundError):
            raise RequestError("the bytes are gone", reason=Reason.NOT_FOUND) from None
        except (BaseError, OSError) as error:
            raise StorageError(_failure(error)) from None

    async def erase(self, names: Iterable[str]) -> None:
        """Delete those of these objects that exist.

        Raises:
            StorageError: the storage is not writable.
        """
        for name in names:
            try:
                await obstore.delete_async(self._store, name)
            except (NotFoundError, FileNotFoundError):
                continue
            except (BaseError, OSError) as error:
                raise StorageError(_failure(error)) from None

    async def erase_before(self, moment: datetime) -> int:
        """Delete objects written before a time; return how many.

        Raises:
            StorageError: the storage is unusable.
        """
        try:
            everything = [one async for batch in self._store.list() for one in batch]
        except (BaseError, OSError) as error:
            raise StorageError(_failure(error)) from None
        old = [one["path"] for one in everything if one["last_modified"] < moment]
        await self.erase(old)
        return len(old)

    async def erase_folders(self, folders: Iterable[str]) -> None:
        """Delete all objects in these folders, including leftovers of interrupted attempts.

        Raises:
            StorageError: the storage is unusable.
        """
        for folder in folders:
            await self.erase(await self.names(folder))

    async def names(self, folder: str) -> list[str]:
        """List the objects of a folder.

        Raises:
            StorageError: the storage is not readable.
        """
        try:
            return [one["path"] async for batch in self._store.list(folder) for one in batch]
        except (BaseError, OSError) as error:
            raise StorageError(_failure(error)) from None


def located(url: str, folder: Path) -> str:
    """Give where artifacts are kept; a relative path is looked for in the folder."""
    return url if "://" in url else str(folder / url)


def _failure(error: Exception) -> str:
    """Describe a failure without a path."""
    return f"the storage failed ({type(error).__name__})"
