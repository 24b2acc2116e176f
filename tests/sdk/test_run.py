import asyncio

import pytest
from tests.support.pictures import png

import vtryon
from vtryon import Accepted, Finished, Preview, Stage, StageFinished, StageStarted, StepFinished

PICTURE = png()


def many_steps(client: vtryon.Client, **options) -> vtryon.Run[vtryon.Result]:
    return client.try_on(PICTURE, PICTURE, steps=200, **options)


async def frees_its_place(client: vtryon.Client) -> bool:
    """The mesh has two places and the left run had 4 s to go; a new one gets through at once."""
    quick = [client.try_on(PICTURE, PICTURE, steps=1) for _ in range(2)]
    async with asyncio.timeout(2):
        results = await asyncio.gather(*quick)
    return len(results) == 2


async def test_awaiting_gives_the_result(scripted: vtryon.Client) -> None:
    result = await scripted.try_on(PICTURE, PICTURE, steps=2, seed=9)
    assert result.seed == 9
    assert result.picture.size == (96, 128)
    assert result.picture.to_pil().size == (96, 128)
    assert result.picture.to_numpy().shape == (128, 96, 3)
    assert result.stages[Stage.SAMPLING].sigmas == (1.0, 0.5, 0.0)


async def test_iterating_gives_typed_events_in_order_and_awaiting_then_the_result(
    scripted: vtryon.Client,
) -> None:
    run = scripted.try_on(PICTURE, PICTURE, steps=2)
    events = [event async for event in run]
    kinds = [type(event) for event in events]
    assert kinds[0] is Accepted
    assert kinds[-1] is Finished
    assert kinds.count(StepFinished) == 2
    assert kinds.count(Preview) == 2
    assert kinds.count(StageStarted) == kinds.count(StageFinished) == 4
    assert (await run).ledger == events[-1].ledger


async def test_a_run_is_iterated_once(scripted: vtryon.Client) -> None:
    run = scripted.try_on(PICTURE, PICTURE, steps=1)
    assert await run is await run
    with pytest.raises(vtryon.RequestError, match="once"):
        async for _ in run:
            pass


async def test_breaking_out_frees_the_place(scripted: vtryon.Client) -> None:
    for _ in range(3):
        run = many_steps(scripted)
        async for event in run:
            if isinstance(event, StepFinished):
                break
        with pytest.raises(vtryon.RunCancelledError):
            await run
    assert await frees_its_place(scripted)


async def test_leaving_the_context_frees_the_place(scripted: vtryon.Client) -> None:
    """The iteration is neither ended nor dropped: it is the context that cancels."""
    for _ in range(3):
        async with many_steps(scripted) as run:
            events = aiter(run)
            while not isinstance(await anext(events), StepFinished):
                pass
        with pytest.raises(vtryon.RunCancelledError):
            async for _ in events:
                pass
    assert await frees_its_place(scripted)


async def test_cancelling_the_task_frees_the_place(scripted: vtryon.Client) -> None:
    stepping = asyncio.Event()

    async def follow() -> None:
        async for event in many_steps(scripted):
            if isinstance(event, StepFinished):
                stepping.set()

    for _ in range(3):
        task = asyncio.create_task(follow())
        await stepping.wait()
        stepping.clear()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await frees_its_place(scripted)


async def test_cancelling_from_outside_raises_cancelled(scripted: vtryon.Client) -> None:
    run = many_steps(scripted)
    with pytest.raises(vtryon.RunCancelledError):
        async for event in run:
            if isinstance(event, StepFinished):
                run.cancel()


async def test_a_deadline_is_kept_and_counts_the_steps(scripted: vtryon.Client) -> None:
    with pytest.raises(vtryon.DeadlineError) as caught:
        await many_steps(scripted, timeout_seconds=0.5)
    assert 0 < caught.value.completed_steps < 200
    assert await frees_its_place(scripted)


async def test_the_deadline_that_counts_is_told(scripted: vtryon.Client) -> None:
    own = await scripted.try_on(PICTURE, steps=1, timeout_seconds=30)
    assert not own.accepted.timeout_is_default
    assert 29 < own.accepted.timeout_seconds < 31  # gRPC rounds it up on the wire
    default = await scripted.try_on(PICTURE, steps=1)
    assert default.accepted.timeout_is_default
    assert default.accepted.timeout_seconds == 120


async def test_pictures_come_as_path_bytes_or_pil(scripted: vtryon.Client, tmp_path) -> None:
    from PIL import Image

    path = tmp_path / "person.png"
    path.write_bytes(PICTURE)
    pil = Image.new("RGB", (48, 64), "teal")
    for source in (path, str(path), PICTURE, pil):
        assert (await scripted.try_on(source, steps=1, seed=1)).picture.data


async def test_no_garment_and_several_garments_are_taken(scripted: vtryon.Client) -> None:
    for garments in (None, [], PICTURE, [PICTURE, png(colour="red"), png(colour="blue")]):
        result = await scripted.try_on(PICTURE, garments, steps=1)
        expected = len(garments) if isinstance(garments, list) else int(garments is not None)
        assert len(result.fits) == expected + 1
    assert [fit.subject for fit in result.fits] == ["person", "garment", "garment 2", "garment 3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "nonesuch"}, "profile: takes one of diffusers, comfy, lightning, not"),
        ({"profile": "comfy", "numerics": vtryon.Numerics()}, "not both"),
    ],
)
async def test_what_can_be_told_without_a_server_is(scripted, options, message) -> None:
    with pytest.raises(vtryon.RequestError, match=message):
        scripted.try_on(PICTURE, PICTURE, **options)


async def test_a_missing_file_is_named_without_its_folder(scripted, tmp_path) -> None:
    with pytest.raises(
        vtryon.RequestError, match=r"can't read the picture 'nobody\.png'"
    ) as caught:
        await scripted.try_on(tmp_path / "nobody.png")
    assert str(tmp_path) not in str(caught.value)


async def test_saving_is_whole_or_not_at_all(scripted: vtryon.Client, tmp_path) -> None:
    result = await scripted.try_on(PICTURE, steps=1)
    saved = result.picture.save(tmp_path / "result.png")
    assert saved.read_bytes() == result.picture.data
    assert [path.name for path in tmp_path.iterdir()] == ["result.png"]


async def test_a_client_that_was_not_entered_says_so() -> None:
    with pytest.raises(vtryon.SettingsError, match="async with"):
        vtryon.Client("localhost:1").try_on(PICTURE)


async def test_a_run_that_was_left_before_it_was_sent_is_not_sent(scripted: vtryon.Client) -> None:
    run = scripted.try_on(PICTURE, steps=1)
    run.cancel()
    with pytest.raises(vtryon.RunCancelledError):
        await run


async def test_a_run_is_accepted_wherever_asyncio_takes_a_coroutine(scripted) -> None:
    def run() -> vtryon.Run[vtryon.Result]:
        return scripted.try_on(PICTURE, steps=1, seed=1)

    async with asyncio.TaskGroup() as group:
        task = group.create_task(run())
    results = [
        task.result(),
        await asyncio.create_task(run()),
        await asyncio.ensure_future(run()),
        await asyncio.wait_for(run(), 60),
        *await asyncio.gather(run(), run()),
    ]
    assert all(isinstance(result, vtryon.Result) for result in results)


async def test_several_tasks_may_await_one_run(scripted: vtryon.Client) -> None:
    run = scripted.try_on(PICTURE, steps=2)
    first, second = await asyncio.gather(run, asyncio.create_task(run))
    assert first is second is await run


async def test_a_task_awaits_a_run_that_another_iterates(scripted: vtryon.Client) -> None:
    run, stepping = scripted.try_on(PICTURE, steps=5), asyncio.Event()

    async def follow() -> int:
        steps = 0
        async for event in run:
            if isinstance(event, StepFinished):
                steps += 1
                stepping.set()
        return steps

    following = asyncio.create_task(follow())
    await stepping.wait()
    assert (await run).picture.data
    assert await following == 5


async def test_a_run_that_fails_fails_for_all_who_await_it(scripted: vtryon.Client) -> None:
    run = scripted.try_on(PICTURE, steps=201)
    results = await asyncio.gather(run, asyncio.create_task(run), return_exceptions=True)
    assert [type(result) for result in results] == [vtryon.RequestError] * 2


async def test_awaiting_within_the_own_iteration_is_refused_instead_of_hanging(scripted) -> None:
    run = scripted.try_on(PICTURE, steps=2)
    async for _ in run:
        with pytest.raises(vtryon.RequestError, match="this task iterates the run"):
            await run
    assert (await run).picture.data


async def test_cancelling_a_task_of_a_run_frees_the_place(scripted: vtryon.Client) -> None:
    for _ in range(3):
        task = asyncio.create_task(many_steps(scripted))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await frees_its_place(scripted)
