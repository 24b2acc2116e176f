"""Our errors through a Triton server, which carries a message and a coarse code."""

from __future__ import annotations

import json
import re

from vtryon.errors import OverloadedError, Reason, StageError, VtryonError
from vtryon.wire.status import REASONS

_MARK = re.compile(r"\s*\[vtryon (\{.*\})\]\s*$", re.DOTALL)


def to_message(error: VtryonError) -> str:
    """Format an error: its message, followed by machine-readable JSON."""
    facts: dict[str, object] = {"reason": error.reason or Reason.STAGE_FAILED}
    if error.metadata:
        facts["metadata"] = error.metadata
    if isinstance(error, OverloadedError):
        facts["retry_after_seconds"] = error.retry_after_seconds
    return f"{error.message} [vtryon {json.dumps(facts)}]"


def from_message(message: str) -> VtryonError | None:
    """Read an error that a model of ours worded; None where another did."""
    found = _MARK.search(message)
    if not found:
        return None
    try:
        facts = json.loads(found.group(1))
        reason = Reason(facts["reason"])
    except (ValueError, KeyError):
        return StageError(message)
    kind = REASONS[reason].error
    given = {"reason": reason, "metadata": facts.get("metadata")}
    if kind is OverloadedError:
        given["retry_after_seconds"] = float(facts.get("retry_after_seconds", 1.0))
    return kind(message[: found.start()], **given)
