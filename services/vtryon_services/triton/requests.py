"""Requests and responses of Triton's Python backend, in whose processes this runs.

Tensors are exchanged by DLPack: that backend's numpy path returns empty outputs under numpy 2, and
crashes on BYTES, so text is UINT8.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from PIL import Image

from vtryon.checkpoint_source import parse_source
from vtryon.errors import (
    Reason,
    RequestError,
    RunCancelledError,
    SettingsError,
    StageError,
    VtryonError,
)
from vtryon.types import (
    MAX_PICTURE_BYTES,
    Numerics,
    ResizeFilter,
    Stage,
)
from vtryon_services.engine import pictures
from vtryon_services.engine.checkpoint import SHIPPED_CHECKPOINT, Checkpoint
from vtryon_services.engine.numerics import Resolved, resolve
from vtryon_services.engine.placement import Placement
from vtryon_services.triton.contract import PARAMETERS, Model, digest_parameter
from vtryon_services.triton.failures import to_message

try:
    import triton_python_backend_utils as backend  # type: ignore[import-not-found]
except ImportError:  # outside of a Triton server, for the tests of what needs none
    backend = None

R = TypeVar("R")
_log = logging.getLogger("vtryon.triton")


class ModelRequest:
    """A request, as the models see it."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.parameters: Mapping[str, Any] = json.loads(request.parameters() or "{}")

    def check(self, model: Model, digest: str) -> None:
        """Refuse parameters that no model reads, and a caller that expects other weights.

        Triton's own parameters begin with its name.

        Raises:
            RequestError: naming the parameters, or with both digests.
        """
        own = {name for name in self.parameters if not name.startswith("triton_")}
        if unknown := sorted(own - PARAMETERS):
            named, known = (", ".join(names) for names in (unknown[:20], sorted(PARAMETERS)))
            raise RequestError(f"there is no parameter {named}; there are {known}")
        expected = self.value(digest_parameter(model), str)
        if expected is not None and expected != digest:
            raise RequestError(
                f"the model {model} is another one than expected: its digest is {digest[:12]}, "
                f"and {digest_parameter(model)} is {expected[:12]}",
                reason=Reason.MODEL_CHANGED,
            )

    def tensor(self, name: str) -> torch.Tensor | None:
        """Give an input without its leading 1; None where it is missing or empty."""
        found = backend.get_input_tensor_by_name(self._request, name)
        if found is None:
            return None
        tensor: torch.Tensor = torch.utils.dlpack.from_dlpack(found.to_dlpack())[0]
        return tensor if tensor.numel() else None

    def needed(self, name: str) -> torch.Tensor:
        """Give an input that must be there.

        Raises:
            RequestError: it is empty.
        """
        tensor = self.tensor(name)
        if tensor is None:
            raise RequestError(f"{name} is empty", reason=Reason.PAYLOAD_INVALID)
        return tensor

    def bytes(self, name: str) -> bytes | None:
        """Give an input of UINT8 as bytes."""
        tensor = self.tensor(name)
        return None if tensor is None else tensor.numpy().tobytes()

    def text(self, name: str) -> str | None:
        """Give an input of UTF-8.

        Raises:
            RequestError: it is something else.
        """
        data = self.bytes(name)
        try:
            return None if data is None else data.decode()
        except UnicodeDecodeError as error:
            raise RequestError(f"{name} is no UTF-8") from error

    def flag(self, name: str) -> bool:
        """Give an input that is 1, or else 0, missing or empty.

        Raises:
            RequestError: it is something else.
        """
        data = self.bytes(name)
        if data not in {None, b"\0", b"\1"}:
            raise RequestError(f"{name} is neither 0 nor 1")
        return data == b"\1"

    def picture(self, name: str) -> Image.Image | None:
        """Decode an input that is a picture.

        Raises:
            RequestError: it is too large, or can't be decoded.
        """
        data = self.bytes(name)
        if data is not None and len(data) > MAX_PICTURE_BYTES:
            raise RequestError(
                f"{name} has {len(data)} bytes; it takes {MAX_PICTURE_BYTES}",
                reason=Reason.PAYLOAD_TOO_LARGE,
            )
        return None if data is None else pictures.decode(data)

    def value(self, name: str, read: Callable[[Any], R]) -> R | None:
        """Parse a parameter; None if it is not set.

        Raises:
            RequestError: it is invalid.
        """
        given = self.parameters.get(name)
        try:
            return None if given is None else read(given)
        except (ValueError, TypeError) as error:
            raise RequestError(f"the parameter {name} is invalid: {error}") from error

    def numerics(self) -> Resolved:
        """Give the numerics of an encoder: its way to resize.

        Raises:
            RequestError: there is no such way.
        """
        given = self.text("RESIZE")
        try:
            return resolve(Numerics(resize=ResizeFilter(given) if given else None))
        except ValueError as error:
            raise RequestError(f"RESIZE is invalid: {error}") from error


def whole(given: Any) -> int:
    """Read a whole number, which may be digits.

    Raises:
        ValueError: it has a fraction, or is no number.
    """
    if isinstance(given, bool) or (isinstance(given, float) and not given.is_integer()):
        raise ValueError(f"{given} is no whole number")
    return int(given)


def respond(**tensors: torch.Tensor) -> Any:
    """Make a response; a leading 1 is put before every tensor."""
    return backend.InferenceResponse(
        [
            backend.Tensor.from_dlpack(name, tensor.unsqueeze(0).contiguous())
            for name, tensor in tensors.items()
        ]
    )


def refuse(error: Exception, stage: Stage) -> Any:
    """Build an error response."""
    if not isinstance(error, VtryonError):
        _log.error("a model failed", exc_info=error)
        error = StageError("the model failed; Triton's log has the cause")
    error.metadata = {"stage": stage.value, **error.metadata}
    codes = {
        RequestError: backend.TritonError.INVALID_ARG,
        StageError: backend.TritonError.INTERNAL,
        RunCancelledError: backend.TritonError.CANCELLED,
    }
    code = codes.get(type(error), backend.TritonError.UNAVAILABLE)
    return backend.InferenceResponse([], backend.TritonError(to_message(error), code))


def finish(sender: Any, response: Any) -> None:
    """Send the last response of a stream."""
    sender.send(response, flags=backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def as_bytes(data: bytes) -> torch.Tensor:
    """Give a tensor of UINT8."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


class ModelSettings:
    """The settings that the export wrote into `config.pbtxt`."""

    def __init__(self, arguments: Mapping[str, str]) -> None:
        given = json.loads(arguments["model_config"])["parameters"]
        self.values = {name: one["string_value"] for name, one in given.items()}
        torch.set_num_threads(int(self.values["threads"]) or torch.get_num_threads())
        checkpoint = self.values["checkpoint"]
        self.digest = self.values["digest"]
        self.checkpoint = Checkpoint.open(
            parse_source(checkpoint) if checkpoint else SHIPPED_CHECKPOINT
        )
        device = self.values["device"]
        if device == "cuda":  # the GPU that Triton has given to this instance
            device = f"cuda:{arguments['model_instance_device_id']}"
        self.placement = Placement.of(device, self.values["dtype"])

    def check_digest(self, found: str) -> None:
        """Compare the loaded checkpoint with the exported digest, by which clients know the model.

        Raises:
            SettingsError: the checkpoint has changed since the export.
        """
        if found != self.digest:
            raise SettingsError(
                "the checkpoint is another one than when the repository was exported: run "
                "`vtryon models export-triton` again",
                reason=Reason.CHECKPOINT_CORRUPT,
            )


def check_latents(name: str, latents: torch.Tensor, max_area: int) -> None:
    """Check properties that Triton does not: it knows only the number of dimensions.

    Raises:
        RequestError: odd sides, too many pixels, NaN or infinity.
    """
    _, height, width = latents.shape
    if height % 2 or width % 2 or 64 * height * width > max_area:
        raise RequestError(
            f"{name} has the shape {tuple(latents.shape)}; sides are even, and of at most "
            f"{max_area} pixels together",
            reason=Reason.PAYLOAD_INVALID,
        )
    check_finite(name, latents)


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Refuse NaN and infinities.

    Raises:
        RequestError: there are some.
    """
    if not bool(tensor.isfinite().all()):
        raise RequestError(f"{name} holds NaN or an infinity", reason=Reason.TENSOR_NOT_FINITE)
