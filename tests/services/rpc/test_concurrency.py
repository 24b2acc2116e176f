import asyncio

import pytest

from vtryon.errors import OverloadedError
from vtryon.types import Stage
from vtryon_services.rpc.concurrency import ConcurrencyLimiter, Permit


async def positions(ticket: Permit, seen: list[int]) -> None:
    seen.extend([position async for position in ticket])


async def test_first_come_first_served_with_positions_that_fall() -> None:
    places = ConcurrencyLimiter(Stage.DECODING, 1, 5)
    first, second, third = places.enter(), places.enter(), places.enter()
    assert first.has_place
    seen: list[int] = []
    waiting = asyncio.create_task(positions(third, seen))
    await asyncio.sleep(0)
    places.leave(first)
    assert second.has_place
    await asyncio.sleep(0)
    places.leave(second)
    await waiting
    assert seen == [2, 1]


async def test_a_full_queue_refuses_at_once_and_says_when() -> None:
    places = ConcurrencyLimiter(Stage.DECODING, 1, 1)
    places.enter()
    places.enter()
    with pytest.raises(OverloadedError, match="1 are waiting") as caught:
        places.enter()
    assert caught.value.retry_after_seconds > 0


async def test_leaving_the_queue_lets_the_others_move_up() -> None:
    places = ConcurrencyLimiter(Stage.DECODING, 1, 5)
    with places.enter():
        with places.enter() as waiting:
            behind = places.enter()
            assert places.position(behind) == 2
            assert not waiting.has_place
        assert places.position(behind) == 1
    assert behind.has_place
    assert behind.waited_seconds >= 0


async def test_a_full_queue_refuses_before_the_payloads_too() -> None:
    places = ConcurrencyLimiter(Stage.DECODING, 1, 0)
    places.check_room()
    with places.enter(), pytest.raises(OverloadedError):
        places.check_room()
    places.check_room()


async def test_the_next_place_goes_to_the_tenant_that_holds_least() -> None:
    places = ConcurrencyLimiter(Stage.DECODING, 2, 10)
    held = [places.enter("greedy"), places.enter("greedy")]
    greedy, modest = places.enter("greedy"), places.enter("modest")
    assert places.position(modest) < places.position(greedy)
    places.leave(held[0])
    assert (greedy.has_place, modest.has_place) == (False, True)
    places.leave(modest)
    assert greedy.has_place


async def test_a_reserve_is_for_tenants_with_less_than_their_share() -> None:
    places = ConcurrencyLimiter(Stage.PIPELINE, 4, 0, reserve=2)
    held = [places.enter("greedy") for _ in range(4)]
    with pytest.raises(OverloadedError):
        places.enter("greedy")
    modest = [places.enter("modest"), places.enter("modest")]
    assert [one.has_place for one in modest] == [True, True]
    with pytest.raises(OverloadedError):  # it has its share
        places.enter("modest")
    third = places.enter("third")
    assert not third.has_place  # the reserve is used up
    places.leave(held[0])
    assert third.has_place


async def test_a_tenant_alone_has_no_reserve() -> None:
    places = ConcurrencyLimiter(Stage.PIPELINE, 1, 1, reserve=5)
    with places.enter("one"), places.enter("one") as waiting:
        assert not waiting.has_place


async def test_a_full_queue_refuses_who_has_most_and_not_who_has_least() -> None:
    places = ConcurrencyLimiter(Stage.DECODING, 4, 0)
    held = [places.enter("greedy") for _ in range(4)]
    with pytest.raises(OverloadedError):
        places.enter("greedy")
    waiting = [places.enter("modest") for _ in range(2)]
    with pytest.raises(OverloadedError):
        places.enter("modest")  # that would be more than its share
    places.leave(held[0])
    assert waiting[0].has_place
    assert places.waiting == 1
