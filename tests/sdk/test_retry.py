"""Calls are sent again: in order, as the server says, within the deadline and the budget."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from tests.support.pictures import png

import vtryon
from vtryon.errors import OverloadedError, Reason
from vtryon.testing import scripted_mesh
from vtryon.wire import status
from vtryon.wire.retry import CapacityQueue, RetryBudget

PICTURE = png()
LONG_SECONDS = 100.0


@pytest.fixture(scope="module")
async def small() -> AsyncIterator[str]:
    """A mesh with few permits: two requests run, and the pipeline accepts four."""
    async with scripted_mesh(
        step_seconds=0.005, max_concurrency=2, max_waiting=2, max_requests=4
    ) as target:
        yield target


async def test_a_hundred_try_ons_at_once_all_finish(small: str) -> None:
    async with vtryon.Client(small) as client:
        runs = [
            client.try_on(PICTURE, steps=1, seed=seed, timeout_seconds=LONG_SECONDS)
            for seed in range(100)
        ]
        results = await asyncio.gather(*runs)
    assert [result.seed for result in results] == list(range(100))


async def test_without_retry_a_full_server_refuses_at_once(small: str) -> None:
    async with vtryon.Client(small, retry=False) as client:
        runs = [client.try_on(PICTURE, steps=1) for _ in range(50)]
        results = await asyncio.gather(*runs, return_exceptions=True)
    refused = [result for result in results if isinstance(result, OverloadedError)]
    assert refused
    assert all(error.reason is Reason.QUEUE_FULL for error in refused)
    assert any(isinstance(result, vtryon.Result) for result in results)


async def test_a_tenant_never_waits_behind_refused_calls_of_another(small: str) -> None:
    async with vtryon.Client(small) as client:
        greedy, modest = client.acting_for("greedy"), client.acting_for("modest")
        many = [asyncio.create_task(greedy.try_on(PICTURE, steps=20)) for _ in range(60)]
        await asyncio.sleep(0.5)  # until most of them were refused
        await modest.try_on(PICTURE, steps=1)
        left = sum(not task.done() for task in many)
        for task in many:
            task.cancel()
        await asyncio.gather(*many, return_exceptions=True)
    assert left > 30


class Server:
    """A server of jobs that answers `GetJob` as it is told, and records each call."""

    def __init__(self) -> None:
        self.answers: list[vtryon.VtryonError] = []
        self.calls: list[tuple[float, str]] = []

    async def get(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """Fail with the next answer, or find the job."""
        self.calls.append((time.monotonic(), request[2:].decode()))
        if self.answers:
            await context.abort(*status.to_rpc(self.answers.pop(0)))
        return request

    def count(self, job: str) -> int:
        return sum(name == job for _, name in self.calls)


@asynccontextmanager
async def serving(policy: vtryon.RetryPolicy | bool = True) -> AsyncIterator:
    behaviour = Server()
    calls = {"GetJob": grpc.unary_unary_rpc_method_handler(behaviour.get)}
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("vtryon.v1.JobService", calls),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with vtryon.Client(f"127.0.0.1:{port}", retry=policy) as client:
        yield client, behaviour
    await server.stop(None)


def full(seconds: float) -> OverloadedError:
    return OverloadedError("full", retry_after_seconds=seconds)


async def test_what_the_server_says_is_waited_before_the_next_attempt() -> None:
    async with serving() as (client, server):
        server.answers = [full(0.3), full(0.1)]
        assert (await client.jobs.get("a")).id == "a"
    (first, _), (second, _), (third, _) = server.calls
    assert second - first >= 0.3
    assert third - second >= 0.1


async def test_calls_that_were_refused_are_sent_again_in_their_order() -> None:
    async with serving() as (client, server):
        server.answers = [full(0.1)] * 5
        names = [f"{number}" for number in range(5)]
        await asyncio.gather(*(client.jobs.get(name) for name in names))
    assert sorted(name for _, name in server.calls[:5]) == names
    assert [name for _, name in server.calls[5:]] == names


async def test_a_new_call_waits_behind_those_that_were_refused() -> None:
    async with serving() as (client, server):
        server.answers = [full(0.3)]
        first = asyncio.create_task(client.jobs.get("first"))
        while not server.calls:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        await asyncio.gather(first, client.jobs.get("second"))
    assert [name for _, name in server.calls] == ["first", "first", "second"]


async def test_a_call_that_can_not_wait_so_long_is_refused_at_once() -> None:
    async with serving(vtryon.RetryPolicy(max_wait_seconds=5)) as (client, server):
        server.answers = [full(30.0)]
        with pytest.raises(OverloadedError):
            await client.jobs.get("a")
        assert (await client.jobs.get("b")).id == "b"
    assert server.count("a") == 1


async def test_a_server_that_is_going_away_is_asked_again_a_few_times() -> None:
    leaving = vtryon.UnavailableError("leaving", reason=Reason.SHUTTING_DOWN)
    async with serving() as (client, server):
        server.answers = [leaving, leaving]
        assert (await client.jobs.get("a")).id == "a"
        server.answers = [leaving] * 3
        with pytest.raises(vtryon.UnavailableError):
            await client.jobs.get("b")
    assert (server.count("a"), server.count("b")) == (3, 3)


@pytest.mark.parametrize(
    "error",
    [
        vtryon.RequestError("wrong"),
        vtryon.AccessError("who are you?"),
        vtryon.StageError("failed"),
        vtryon.UnavailableError("sampling can't be reached"),  # the pipeline has tried
        vtryon.DeadlineError("late"),
        OverloadedError("late", reason=Reason.DEADLINE_UNREACHABLE, retry_after_seconds=1e6),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_would_fail_again_is_sent_once(error: vtryon.VtryonError) -> None:
    async with serving() as (client, server):
        server.answers = [error]
        with pytest.raises(type(error)):
            await client.jobs.get("a")
    assert len(server.calls) == 1


async def test_the_budget_ends_retries_of_a_server_that_always_breaks() -> None:
    leaving = vtryon.UnavailableError("leaving", reason=Reason.SHUTTING_DOWN)
    async with serving() as (client, server):
        server.answers = [leaving] * 1000
        calls = [client.jobs.get(str(number)) for number in range(100)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, vtryon.UnavailableError) for result in results)
    assert 100 < len(server.calls) <= 100 + 20 + 10  # the burst, and a tenth of the calls


def test_the_budget_allows_a_burst_and_then_a_tenth() -> None:
    budget = RetryBudget(share=0.1, burst=5)
    assert [budget.spend() for _ in range(6)] == [True] * 5 + [False]
    for _ in range(11):
        budget.earn()
    assert [budget.spend(), budget.spend()] == [True, False]


async def test_a_call_that_is_left_while_it_waits_lets_the_next_one_go() -> None:
    line = CapacityQueue()
    first, second = line.number(), line.number()
    line.refused(0.0)
    await line.turn(first, join=True)
    waiting = asyncio.create_task(line.turn(second, join=False))
    await asyncio.sleep(0)
    assert not waiting.done()
    line.leave(first)
    await waiting


async def test_an_event_that_was_seen_forbids_another_attempt() -> None:
    """A full sampler refuses after `Accepted`: who awaits is served, who iterates is told."""
    async with (
        scripted_mesh(step_seconds=0.05, max_concurrency=1, max_waiting=0) as target,
        vtryon.Client(target) as client,
    ):

        async def follow() -> int:
            return len([event async for event in client.try_on(PICTURE, steps=4)])

        awaited = [client.try_on(PICTURE, steps=4) for _ in range(4)]
        assert len(await asyncio.gather(*awaited)) == 4
        iterated = await asyncio.gather(*(follow() for _ in range(4)), return_exceptions=True)
    assert any(isinstance(result, OverloadedError) for result in iterated)
