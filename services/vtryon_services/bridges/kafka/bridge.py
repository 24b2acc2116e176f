"""The bridge as a process: workers, relay, and a health service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta

import structlog
from aiokafka.errors import KafkaError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from vtryon.catalog import JOBS, KAFKA
from vtryon.errors import SettingsError, UnavailableError, VtryonError
from vtryon_services.bridges.kafka.choreography import ChoreographedJobs
from vtryon_services.bridges.kafka.claims import ClaimStore
from vtryon_services.bridges.kafka.consumer import ConsumerLoop, Work
from vtryon_services.bridges.kafka.jobs import OutboxPublisher, StoredJobs
from vtryon_services.bridges.kafka.schemas import Codec
from vtryon_services.bridges.kafka.sender import Sender
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.bridges.kafka.stages import StageWork
from vtryon_services.bridges.kafka.topics import Names, check_topics, create_topics
from vtryon_services.bridges.targets import Clients
from vtryon_services.rpc.adapter import Service
from vtryon_services.rpc.process import RunningServer
from vtryon_services.rpc.serve import Server
from vtryon_services.storage.artifacts import Artifacts

_log = structlog.get_logger("vtryon.kafka")
_START_SECONDS = 30.0
_BETWEEN_SWEEPS_SECONDS = 3600.0


@asynccontextmanager
async def begin(settings: KafkaSettings) -> AsyncIterator[RunningServer]:
    """Work on messages until the block is left, then hand over.

    Raises:
        SettingsError: broker or registry can't be used, or topics are not as they ought to be.
    """
    server = Server(settings)
    address = server.bind(settings.listen)
    async with AsyncExitStack() as open_:
        bridge = Bridge(settings, open_)
        await bridge.start()
        service = Service(
            KAFKA, "vtryon.kafka.Bridge", (), settings, bridge.is_ready, retire=bridge.stop
        )
        await server.start([service])
        try:
            yield RunningServer(server, address, [service])
        finally:
            await server.drain()


class Bridge:
    """Everything that works on messages in this process."""

    def __init__(self, settings: KafkaSettings, open_: AsyncExitStack) -> None:
        self._settings = settings
        self._open = open_
        artifacts = Artifacts.open(settings.claims_url)
        self._artifacts = artifacts
        self._claims = ClaimStore(artifacts, settings.claim_bytes)
        self._codec = Codec(settings)
        self._sender = Sender(settings)
        self._workers: list[ConsumerLoop] = []
        self._relay: OutboxPublisher | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._clients = Clients(settings)

    async def start(self) -> None:
        """Check the dependencies, and start.

        Raises:
            SettingsError: a dependency is unusable.
        """
        settings = self._settings
        await self._open.enter_async_context(self._clients)
        self._open.push_async_callback(self._codec.close)
        self._open.push_async_callback(self._in_grace, self._sender.stop)
        await _attempt(self._sender.start, f"the broker at {settings.bootstrap_servers}")
        if settings.create_topics:
            await create_topics(settings)
        if problems := await check_topics(settings, settings.works_on):
            listed = "; ".join(problems)
            raise SettingsError(f"{listed}. `vtryon kafka topics create` makes what is missing")
        await _attempt(
            lambda: self._codec.register(settings),
            f"the schema registry at {settings.registry_url}",
        )
        works = [self._work(name) for name in settings.works_on]
        self._workers = [ConsumerLoop(work, self._sender, settings) for work in works]
        # To join a group takes a broker seconds.
        await asyncio.gather(*(worker.start() for worker in self._workers))
        if JOBS in settings.works_on and settings.topology == "hybrid":
            names, client = Names(settings, JOBS), self._clients.of(JOBS)
            self._relay = OutboxPublisher(names, self._codec, self._claims, self._sender, client)
            self._relay.start()
        self._sweeping = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Stop consuming, and leave messages in progress to other members."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._relay is not None:
            await self._relay.stop()
        await asyncio.gather(*(self._in_grace(worker.stop) for worker in self._workers))

    async def _in_grace(self, stop: Callable[[], Awaitable[None]]) -> None:
        """Stop, but do not wait for a broker that is away."""
        try:
            async with asyncio.timeout(self._settings.drain_grace_seconds):
                await stop()
        except TimeoutError:
            _log.warning("timed out closing the broker connection")

    async def is_ready(self) -> bool:
        """Whether every worker has its share of the topics."""
        return all(worker.is_ready for worker in self._workers)

    def _work(self, name: str) -> Work:
        settings = self._settings
        if name == JOBS and settings.topology == "kafka":
            return ChoreographedJobs(settings, self._codec, self._claims)
        client = self._clients.of(name)
        if name == JOBS:
            return StoredJobs(Names(settings, JOBS), self._codec, self._claims, client)
        return StageWork(name, settings, self._codec, self._claims, self._sender, client)

    async def _sweep(self) -> None:
        """Delete expired claim-check objects; for a bucket, its lifecycle rules apply instead."""
        while "://" not in self._settings.claims_url:
            try:
                kept = timedelta(seconds=self._settings.claim_seconds)
                count = await self._artifacts.erase_before(datetime.now(UTC) - kept)
                if count:
                    _log.info("claims erased", count=count)
            except VtryonError as error:
                _log.warning("claims could not be erased", reason=error.reason)
            await asyncio.sleep(_BETWEEN_SWEEPS_SECONDS)


async def _attempt(start: Callable[[], Awaitable[None]], what: str) -> None:
    """Start a client, retrying for some seconds while its server is unreachable."""
    patience = AsyncRetrying(
        retry=retry_if_exception_type((KafkaError, UnavailableError)),
        wait=wait_fixed(0.5),
        stop=stop_after_delay(_START_SECONDS),
        reraise=True,
    )
    try:
        async for attempt in patience:
            with attempt:
                await start()
    except (KafkaError, UnavailableError) as error:
        raise SettingsError(f"{what} can't be reached: {error}") from None
