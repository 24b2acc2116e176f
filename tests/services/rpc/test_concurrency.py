import asyncio

import pytest

from vtryon.errors import OverloadedError
from vtryon.types import Stage
from vtryon_services.rpc.concurrency import ConcurrencyLimiter, Permit


async def positions(permit: Permit, seen: list[int]) -> None:
    seen.extend([position async for position in permit])


async def test_first_come_first_served_with_positions_that_fall() -> None:
    limiter = ConcurrencyLimiter(Stage.DECODING, 1, 5)
    first, second, third = limiter.enter(), limiter.enter(), limiter.enter()
    assert first.is_granted
    seen: list[int] = []
    waiting = asyncio.create_task(positions(third, seen))
    await asyncio.sleep(0)
    limiter.leave(first)
    assert second.is_granted
    await asyncio.sleep(0)
    limiter.leave(second)
    await waiting
    assert seen == [2, 1]


async def test_a_full_queue_refuses_at_once_and_says_when() -> None:
    limiter = ConcurrencyLimiter(Stage.DECODING, 1, 1)
    limiter.enter()
    limiter.enter()
    with pytest.raises(OverloadedError, match="1 are waiting") as caught:
        limiter.enter()
    assert caught.value.retry_after_seconds > 0


async def test_leaving_the_queue_lets_the_others_move_up() -> None:
    limiter = ConcurrencyLimiter(Stage.DECODING, 1, 5)
    with limiter.enter():
        with limiter.enter() as waiting:
            behind = limiter.enter()
            assert limiter.position(behind) == 2
            assert not waiting.is_granted
        assert limiter.position(behind) == 1
    assert behind.is_granted
    assert behind.waited_seconds >= 0


async def test_a_full_queue_refuses_before_the_payloads_too() -> None:
    limiter = ConcurrencyLimiter(Stage.DECODING, 1, 0)
    limiter.check_room()
    with limiter.enter(), pytest.raises(OverloadedError):
        limiter.check_room()
    limiter.check_room()


async def test_the_next_place_goes_to_the_tenant_that_holds_least() -> None:
    limiter = ConcurrencyLimiter(Stage.DECODING, 2, 10)
    held = [limiter.enter("greedy"), limiter.enter("greedy")]
    greedy, modest = limiter.enter("greedy"), limiter.enter("modest")
    assert limiter.position(modest) < limiter.position(greedy)
    limiter.leave(held[0])
    assert (greedy.is_granted, modest.is_granted) == (False, True)
    limiter.leave(modest)
    assert greedy.is_granted


async def test_a_reserve_is_for_tenants_with_less_than_their_share() -> None:
    limiter = ConcurrencyLimiter(Stage.PIPELINE, 4, 0, reserve=2)
    held = [limiter.enter("greedy") for _ in range(4)]
    with pytest.raises(OverloadedError):
        limiter.enter("greedy")
    modest = [limiter.enter("modest"), limiter.enter("modest")]
    assert [one.is_granted for one in modest] == [True, True]
    with pytest.raises(OverloadedError):  # it has its share
        limiter.enter("modest")
    third = limiter.enter("third")
    assert not third.is_granted  # the reserve is used up
    limiter.leave(held[0])
    assert third.is_granted


async def test_a_tenant_alone_has_no_reserve() -> None:
    limiter = ConcurrencyLimiter(Stage.PIPELINE, 1, 1, reserve=5)
    with limiter.enter("one"), limiter.enter("one") as waiting:
        assert not waiting.is_granted


async def test_a_full_queue_refuses_who_has_most_and_not_who_has_least() -> None:
    limiter = ConcurrencyLimiter(Stage.DECODING, 4, 0)
    held = [limiter.enter("greedy") for _ in range(4)]
    with pytest.raises(OverloadedError):
        limiter.enter("greedy")
    waiting = [limiter.enter("modest") for _ in range(2)]
    with pytest.raises(OverloadedError):
        limiter.enter("modest")  # that would be more than its share
    limiter.leave(held[0])
    assert waiting[0].is_granted
    assert limiter.waiting == 1
