"""What another attempt of a stage starts from."""

from __future__ import annotations

from vtryon.errors import Reason, RequestError, UnavailableError
from vtryon.events import ResumeChunk
from vtryon.types import PayloadKind, ResumePoint, SampleStart
from vtryon.wire.retry import RetryBudget
from vtryon_services.pipeline.attempts import StageAttempts

START = SampleStart(width=16, height=16, steps=4)
LATENTS = bytes(4 * 4 * 2 * 2)
CHANGED = RequestError("of another model", reason=Reason.MODEL_CHANGED)


def attempts() -> StageAttempts:
    return StageAttempts(RetryBudget(), limit=4)


def test_an_attempt_elsewhere_says_which_model_computed_its_latents() -> None:
    made = attempts()
    made.take(ResumeChunk(2, 0, len(LATENTS), LATENTS, "a"))
    assert made.may_go_on(UnavailableError("gone"), 60)
    assert made.start(START).resume == ResumePoint(2, "a")
    assert [one.payload.kind for one in made.payloads(START, [])] == [PayloadKind.RESUME_LATENTS]


def test_an_attempt_at_a_server_of_another_model_begins_anew() -> None:
    made = attempts()
    made.take(ResumeChunk(2, 0, len(LATENTS), LATENTS, "a"))
    assert made.may_go_on(UnavailableError("gone"), 60)
    assert made.may_go_on(CHANGED, 60)
    assert made.start(START).resume is None
    assert made.payloads(START, []) == []


def test_a_callers_resume_point_of_another_model_is_not_tried_again() -> None:
    assert not attempts().may_go_on(CHANGED, 60)
