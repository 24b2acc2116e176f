"""Settings that only some backends of the stages read.

`vtryon serve` and `vtryon up` use this one table to reject settings that would have no effect.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

ONLY_OF = {
    "checkpoint": "torch",
    "device": "torch",
    "dtype": "torch",
    "keep_fp8": "torch",
    "threads": "torch",
    "compiled": "torch",
    "loras": "torch",
    "triton_url": "triton",
    "triton_shared_memory_bytes": "triton",
    "scripted_seconds": "scripted",
}
# Chosen when the models of a Triton server are exported.
_EXPORTED = ("checkpoint", "device", "dtype", "threads")


def variable(name: str, service: str = "") -> str:
    """Name the variable of a setting: of one service, or the short one of all."""
    words = [service, name] if service else [name]
    return "_".join(["VTRYON", *words]).upper().replace("-", "_")


def unread(service: str, backend: str, given: Container[str]) -> Iterator[str]:
    """Describe each variable that is set for a stage but not read by its backend.

    Args:
        service: the stage.
        backend: backend of the stage.
        given: names of the variables that are set.
    """
    for name, only in ONLY_OF.items():
        for one in (variable(name, service), variable(name)):
            if only != backend and one in given:
                yield refusal(one, name, f"the backend of {service} is {backend}", backend)


def refusal(said: str, name: str, because: str, backend: str) -> str:
    """Describe a setting that is not read, and how to correct it.

    Args:
        said: the setting as the user wrote it: a variable or an argument.
        name: of the setting.
        because: the component that does not read it.
        backend: backend in use.
    """
    only = ONLY_OF[name]
    advice = f"unset it, or choose the backend {only}"
    if backend == "triton" and name in _EXPORTED:
        option = f"--{name}"
        advice = (
            f"unset it, and export the server's models by `vtryon models export-triton {option}`"
        )
    return f"{said} is set, but {because}, which does not read it ({only} does): {advice}"
