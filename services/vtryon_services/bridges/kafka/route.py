"""The route of a try-on from stage to stage, with the inputs and outputs of each stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vtryon.catalog import JOBS
from vtryon.errors import Reason, RequestError
from vtryon.types import PayloadKind, Stage
from vtryon_services.bridges.kafka.records import StageRequestRecord
from vtryon_services.graph import GRAPH

ROUTE: tuple[str, ...] = (
    Stage.TEXT_ENCODER,
    Stage.LATENT_ENCODER,
    Stage.SAMPLING,
    Stage.DECODING,
    JOBS,
)


def renamed(stage: str, kind: PayloadKind | None, route: Sequence[str]) -> PayloadKind | None:
    """Give the kind that a stage's output has as the input of the next stage."""
    reference = PayloadKind.REFERENCE_LATENTS
    return reference if route and reference in GRAPH[stage].gives else kind


def again_from(record: StageRequestRecord, at: str, stage: str) -> StageRequestRecord:
    """Make the request for an earlier stage of a try-on that came to `at`.

    Raises:
        RequestError: the stage is not before it, or the request is no try-on's.
    """
    way = list(ROUTE)
    if list(record.route) != way[way.index(at) + 1 :]:
        raise RequestError("only a try-on goes on from another stage; this was for one alone")
    if stage not in way or way.index(stage) > way.index(at):
        earlier = ", ".join(way[: way.index(at) + 1])
        raise RequestError(f"from_stage: this one may go on from {earlier}")
    later = way[way.index(stage) : way.index(at)]
    made = {kind.value for name in later for kind in GRAPH[name].gives}
    return replace(
        record,
        payloads=tuple(one for one in record.payloads if one.kind not in made),
        route=tuple(way[way.index(stage) + 1 :]),
        hops=tuple(one for one in record.hops if one.stage not in later),
    )


def check_route(stage: str, route: Sequence[str]) -> None:
    """Check the stages that follow a stage.

    Raises:
        RequestError: they are not the next ones in order, or none uses the stage's output.
    """
    way = list(ROUTE)
    behind = way[way.index(stage) + 1 :]
    if list(route) != behind[: len(route)]:
        raise RequestError(
            f"route: the stages after {stage} are {', '.join(behind)}, in this order"
        )
    gives = GRAPH[stage].gives
    if route and gives and not gives & _taken_by(route):
        kinds = ", ".join(sorted(kind.value for kind in gives))
        raise RequestError(f"route: no stage in it takes what {stage} gives: {kinds}")


def check_payloads(
    stage: str, record: StageRequestRecord, kinds: Sequence[PayloadKind | None]
) -> None:
    """Check that each payload is an input of this stage, a later one, or a completed one.

    Raises:
        RequestError: names a payload that no stage uses.
    """
    been = (hop.stage for hop in record.hops if hop.stage)
    taken = _taken_by({stage, *record.route, *been})
    for number, kind in enumerate(kinds):
        if kind not in taken:
            raise RequestError(
                f"payloads.{number}: neither {stage} nor a stage of the route takes {kind}",
                reason=Reason.PAYLOAD_INVALID,
            )


def _taken_by(stages: Iterable[str]) -> set[PayloadKind]:
    return {kind for name in stages if name in GRAPH for kind in GRAPH[name].takes}
