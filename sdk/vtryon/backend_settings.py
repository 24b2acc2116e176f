"""Which settings one backend of the stages reads and the others do not.

`vtryon serve` and `vtryon up` both refuse what is set and not read, by this one table.
"""

from __future__ import annotations

from collections.abc import Container, Iterator

ONLY_OF = {
    "checkpoint": "torch",
    "device": "torch",
    "dtype": "torch",
    "threads": "torch",
    "compiled": "torch",
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
    """Describe each variable that is set for a stage and that its backend does not read.

    Args:
        service: the stage.
        backend: the stage's.
        given: names of the variables that are set.
    """
    for name, only in ONLY_OF.items():
        for one in (variable(name, service), variable(name)):
            if only != backend and one in given:
                yield refusal(one, name, f"the backend of {service} is {backend}", backend)


def refusal(said: str, name: str, because: str, backend: str) -> str:
    """Say that a setting is not read, and what to do.

    Args:
        said: the setting as its user wrote it: a variable or an argument.
        name: of the setting.
        because: what reads no such setting.
        backend: the one that computes.
    """
    only = ONLY_OF[name]
    advice = f"unset it, or choose the backend {only}"
    if backend == "triton" and name in _EXPORTED:
        option = f"--{name}"
        advice = (
            f"unset it, and export the server's models by `vtryon models export-triton {option}`"
        )
    return f"{said} is set, but {because}, which does not read it ({only} does): {advice}"
