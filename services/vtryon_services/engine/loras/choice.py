"""The LoRAs that a request chooses, among those that the sampler has."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vtryon.errors import RequestError, Violation
from vtryon.types import Lora, Numerics, Profile
from vtryon_services.engine.refusals import not_found, unsafe


@dataclass(frozen=True, slots=True)
class LoraFacts:
    """A LoRA of the sampler.

    Attributes:
        digest: sha256 of its file.
        lightning_steps: for a distilled LoRA (Lightning), the steps it was made for; else None.
    """

    digest: str
    lightning_steps: int | None = None


def check_files(paths: Mapping[str, Path]) -> None:
    """Look at the paths of LoRAs, before anything is loaded.

    Raises:
        SettingsError: there is no such file, or it is in another format.
    """
    for name, path in paths.items():
        if not path.is_file():
            raise not_found(f"{label_of(name, path)}: there is no such file")
        if path.suffix != ".safetensors":
            raise unsafe(
                f"{label_of(name, path)} is no safetensors file; no other format is loaded: "
                "convert it"
            )


def label_of(name: str, path: Path) -> str:
    """Name a LoRA in an error."""
    return f"LoRA {name} ({path.name})"


def choose_loras(wanted: Sequence[Lora], known: Mapping[str, LoraFacts]) -> dict[str, float]:
    """Return strengths by name, without those of strength 0.

    Raises:
        RequestError: the sampler does not have one.
    """
    for lora in wanted:
        if lora.name not in known:
            has = ", ".join(sorted(known)) or "none"
            words = f"the sampler has no LoRA {lora.name!r}; those of its setting `loras`: {has}"
            raise RequestError(f"loras: {words}", violations=(Violation("loras", words),))
    strengths = {lora.name: strength_of(lora) for lora in wanted}
    return {name: strength for name, strength in strengths.items() if strength}


def strength_of(lora: Lora) -> float:
    """Return the strength of a LoRA of a request: its own, or 1."""
    return 1.0 if lora.strength is None else lora.strength


def distilled_steps(names: Iterable[str], known: Mapping[str, LoraFacts]) -> int | None:
    """Return the steps that the first distilled LoRA was made for; None without one."""
    steps = (known[name].lightning_steps for name in names)
    return next((own for own in steps if own is not None), None)


def lightning_numerics(numerics: Numerics | None) -> Numerics:
    """Set the profile of distilled models, unless the request has one."""
    numerics = numerics or Numerics()
    return numerics if numerics.profile else replace(numerics, profile=Profile.LIGHTNING)


def digest_with(
    model_digest: str, strengths: Mapping[str, float], known: Mapping[str, LoraFacts]
) -> str:
    """Return the digest of a model with LoRAs applied; its own without any."""
    if not strengths:
        return model_digest
    applied = sorted(f"{known[name].digest}:{value!r}" for name, value in strengths.items())
    return hashlib.sha256("\n".join([model_digest, *applied]).encode()).hexdigest()
