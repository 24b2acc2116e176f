"""What is made of one message: retries, dead letters, headers and records of bounded size."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vtryon.errors import DeadlineError, RequestError, StageError, VtryonError
from vtryon.types import TryOnOptions
from vtryon_services.bridges.kafka.claims import ClaimStore
from vtryon_services.bridges.kafka.consumer import ConsumerLoop
from vtryon_services.bridges.kafka.conversions import (
    answerable,
    error_record,
    options_record,
    read_options,
    seed_record,
)
from vtryon_services.bridges.kafka.messages import (
    ATTEMPT,
    CORRELATION,
    DEADLINE,
    NOT_BEFORE,
    Message,
    ReceivedMessage,
    again,
    dead,
    revived,
)
from vtryon_services.bridges.kafka.records import StageRequestRecord
from vtryon_services.bridges.kafka.sender import Sender
from vtryon_services.bridges.kafka.settings import KafkaSettings
from vtryon_services.bridges.kafka.topics import Names
from vtryon_services.storage.artifacts import Artifacts

SETTINGS = KafkaSettings()


def received(**headers: bytes) -> ReceivedMessage:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ReceivedMessage("vtryon.jobs.requests", 0, 7, b"k", b"v", named)


def stage_request(request_id: str, labels: dict[str, str]) -> StageRequestRecord:
    return StageRequestRecord(request_id=request_id, options={}, payloads=(), labels=labels)


class Failing:
    """Work that always fails in the same way."""

    def __init__(self, error: BaseException) -> None:
        self.names = Names(SETTINGS, "jobs")
        self._error = error

    async def handle(self, _: ReceivedMessage) -> Sequence[Message]:
        raise self._error

    async def failed(self, _: ReceivedMessage, error: VtryonError) -> Sequence[Message]:
        return [Message("answers", b"k", str(error.reason).encode())]


@asynccontextmanager
async def working(work: Failing) -> AsyncIterator[ConsumerLoop]:
    worker = ConsumerLoop(work, Sender(SETTINGS), SETTINGS)
    try:
        yield worker
    finally:
        await worker._consumer.stop()


async def outcome_of(error: BaseException, **headers: bytes) -> tuple[list[str], str]:
    async with working(Failing(error)) as worker:
        caused, outcome = await worker._do_once(received(**headers))
    return [one.topic for one in caused], outcome


@pytest.mark.parametrize("error", [RequestError("no"), DeadlineError("late")])
async def test_what_never_can_be_done_is_a_dead_letter_at_once(error: VtryonError) -> None:
    assert await outcome_of(error) == (["vtryon.jobs.dlq", "answers"], "dead")


@pytest.mark.parametrize("error", [StageError("ill"), RuntimeError(), asyncio.CancelledError()])
async def test_what_failed_is_tried_again_and_then_a_dead_letter(error: BaseException) -> None:
    assert await outcome_of(error) == (["vtryon.jobs.requests.retry-1"], "retried")
    assert await outcome_of(error, attempt=b"1") == (["vtryon.jobs.requests.retry-2"], "retried")
    assert await outcome_of(error, attempt=b"2") == (["vtryon.jobs.dlq", "answers"], "dead")


async def test_work_that_the_worker_leaves_is_not_a_failure() -> None:
    class Endless(Failing):
        async def handle(self, _: ReceivedMessage) -> Sequence[Message]:
            await asyncio.Event().wait()
            return []

    async with working(Endless(ValueError())) as worker:
        task = asyncio.create_task(worker._do_once(received()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_a_message_that_is_sent_again_begins_anew() -> None:
    """Its deadline is over, and its attempts were those of before."""
    old = received(deadline=b"2020-01-01T00:00:00Z", correlation_id=b"c", own=b"o")
    retried = again(old, "retry", 5.0)
    letter = dead(
        ReceivedMessage("retry", 0, 1, b"k", b"v", retried.headers), "dlq", StageError("ill")
    )
    assert letter.headers[ATTEMPT] == b"2"
    sent = revived(ReceivedMessage("dlq", 0, 1, b"k", b"v", letter.headers), "requests")
    assert dict(sent.headers) == {CORRELATION: b"c", "own": b"o"}
    assert not {ATTEMPT, NOT_BEFORE, DEADLINE} & sent.headers.keys()


@pytest.mark.parametrize(("limit", "left"), [(math.inf, 60), (5.0, 5), (90.0, 60)])
def test_the_shorter_of_a_deadline_and_a_timeout_holds(limit: float, left: float) -> None:
    deadline = datetime.now(UTC) + timedelta(seconds=60)
    message = received(deadline=deadline.isoformat().encode())
    assert message.left_seconds(limit) == pytest.approx(left, abs=1)
    assert received().left_seconds(limit) == limit


def test_a_deadline_is_passed_on_with_what_a_message_causes() -> None:
    deadline = b"2100-01-01T00:00:00Z"
    assert received(deadline=deadline).passed_on()[DEADLINE] == deadline


@pytest.mark.parametrize("name", ["correlation_id", "deadline", "priority", "x_vtryon_tenant"])
def test_a_header_that_is_too_long_is_refused_and_not_passed_on(name: str) -> None:
    message = received(**{name: b"x" * 1025})
    with pytest.raises(RequestError, match="1025 bytes"):
        message.check_headers()
    assert name.replace("_", "-") not in message.passed_on()


@pytest.mark.parametrize("tenant", [b" acme", b"acme ", b"x" * 256, "ä".encode(), b"a\nb"])
def test_a_tenant_is_never_cut_or_trimmed(tenant: bytes) -> None:
    with pytest.raises(RequestError, match="1 to 255 printable"):
        received(x_vtryon_tenant=tenant).check_headers()
    received(x_vtryon_tenant=b"x" * 255).check_headers()


def test_an_answer_has_a_bounded_size_whatever_was_refused() -> None:
    facts = {f"{number}" + "k" * 9999: "v" * 9999 for number in range(1000)}
    record = error_record(StageError("m" * 10**6, metadata=facts))
    assert len(repr(record)) < 32_000
    labels = {str(number): "x" * 256 for number in range(17)}
    short = answerable(stage_request("r" * 10**6, labels))
    assert (short.request_id, short.labels) == ("", {})


@pytest.mark.parametrize("request_id", ["r" * 129, "r" * 1024, "with a space", ""])
def test_a_request_id_that_is_refused_is_answered_whole(request_id: str) -> None:
    """A part of an id could be the id of another request."""
    assert answerable(stage_request(request_id, {})).request_id == request_id


def test_many_unknown_words_are_told_by_the_first_twenty() -> None:
    with pytest.raises(RequestError) as caught:
        read_options({"sigmas": ["x"] * 1000})
    assert len(caught.value.violations) == 20


@pytest.mark.parametrize("seed", [None, 0, 2**53, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_seed_of_64_bits_goes_through_avro(seed: int | None) -> None:
    options = TryOnOptions(seed=seed)
    assert read_options({"seed": options_record(options)["seed"]}).seed == seed
    assert isinstance(seed_record(seed), str) == (seed is not None and seed >= 2**63)


@pytest.mark.parametrize("seed", ["-1", "+1", "1.0", "", "٣", "1" * 21])
def test_a_seed_that_is_no_number_is_refused(seed: str) -> None:
    with pytest.raises(RequestError, match="seed"):
        read_options({"seed": seed})


class TestClaims:
    @pytest.fixture
    def claims(self, tmp_path: Path) -> ClaimStore:
        return ClaimStore(Artifacts.open(str(tmp_path / "claims")), 10)

    async def test_what_is_kept_of_a_job_is_erased_with_it(
        self, claims: ClaimStore, tmp_path: Path
    ) -> None:
        [mine] = await claims.pack([b"x" * 11], job_id="a" * 32)
        [other] = await claims.pack([b"y" * 11], job_id="b" * 32)
        await claims.erase("a" * 32)
        with pytest.raises(RequestError, match="gone"):
            await claims.unpack("picture", mine, 100)
        assert await claims.unpack("picture", other, 100) == b"y" * 11
        files = [one for one in (tmp_path / "claims").rglob("*") if one.is_file()]
        assert [one.read_bytes() for one in files] == [b"y" * 11]

    async def test_what_the_bridge_wrote_itself_is_not_erased_with_another_job(
        self, claims: ClaimStore
    ) -> None:
        [mine] = await claims.pack([b"x" * 11], job_id="a" * 32)
        await claims.assign(mine.claim.name, "b" * 32)
        await claims.erase("b" * 32)
        assert await claims.unpack("picture", mine, 100) == b"x" * 11

    async def test_an_id_stands_for_one_request(self, claims: ClaimStore) -> None:
        results: list[Any] = await asyncio.gather(
            *(claims.reserve("job", digest) for digest in ("one", "one", "two")),
            return_exceptions=True,
        )
        refused = [one for one in results if one is not None]
        assert {str(one.reason) for one in refused} == {"ALREADY_EXISTS"}
        assert len(refused) in {1, 2}  # one of the two requests came first
        if len(refused) == 1:
            await claims.reserve("job", "one")
