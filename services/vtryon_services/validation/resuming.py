"""Resume points belong to the models that computed them."""

from __future__ import annotations

import hashlib

from vtryon.errors import Reason, RequestError
from vtryon.types import ResumePoint


def check_sampler(resume: ResumePoint | None, digest: str) -> None:
    """Refuse to go on with latents of another sampler.

    Raises:
        RequestError: the resume point is of another model, or does not say of which.
    """
    if resume is not None:
        _compare(resume.model_digest, digest, "model_digest", "sampler has")


def check_encoders(resume: ResumePoint | None, digest: str) -> None:
    """Refuse to go on with latents that were conditioned by other encoders.

    Raises:
        RequestError: the resume point is of other models, or does not say of which.
    """
    if resume is not None:
        _compare(resume.encoders_digest, digest, "encoders_digest", "encoders have")


def digest_of_encoders(latent_encoder: str, text_encoder: str) -> str:
    """Combine the digests of both encoders."""
    return hashlib.sha256(f"{latent_encoder}:{text_encoder}".encode()).hexdigest()


def _compare(given: str, own: str, field: str, who: str) -> None:
    if not given:
        raise RequestError(f"resume.{field} is missing: take it over from the resume_chunk")
    if given != own:
        raise RequestError(
            f"the resume point is of another model: its {field} is {given[:12]}, and the {who} "
            f"{own[:12]}; begin anew, without the resume point",
            reason=Reason.MODEL_CHANGED,
        )
