"""The tensor contract of the models: names, element types, shapes, parameters.

From it come `config.pbtxt`, the table in `services/model_repository/README.md`, and the names that
both ends use. Every tensor has a leading 1, as Triton's models with a batch dimension do: ensembles
can then join them, and Triton can hand several requests to one call.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from vtryon.sampling_options import SAMPLING_OPTIONS, Option, SamplingOptions, sampling_fields
from vtryon.types import Stage

MAX_PICTURES = 4
_MAX_INT = 2**63 - 1  # of a parameter
# Of the exported sampler: "1" where its checkpoint has what previews are made with, else "0".
PREVIEWS = "previews"


class Model(StrEnum):
    """The models by name."""

    LATENT_ENCODER = "latent_encoder"
    TEXT_ENCODER = "text_encoder"
    SAMPLING = "sampling"
    DECODING = "decoding"
    TRYON = "tryon"


@dataclass(frozen=True, slots=True)
class TensorOf:
    """A tensor of a model, without the leading 1; −1 is any size.

    Attributes:
        optional: requests may leave it out.
    """

    name: str
    data_type: str
    dims: tuple[int, ...]
    about: str
    optional: bool = False

    @property
    def ragged(self) -> bool:
        """Whether requests in one call may differ in its shape."""
        return self.data_type == "UINT8"


@dataclass(frozen=True, slots=True)
class ParameterOf:
    """A request parameter of a model."""

    name: str
    kind: str
    about: str


@dataclass(frozen=True, slots=True)
class Step:
    """One model of an ensemble: which of the ensemble's tensors are its inputs and outputs."""

    model: Model
    inputs: dict[str, str]
    outputs: dict[str, str]


@dataclass(frozen=True, slots=True)
class Contract:
    """One model; an ensemble of others if it has steps."""

    model: Model
    about: str
    inputs: tuple[TensorOf, ...]
    outputs: tuple[TensorOf, ...]
    parameters: tuple[ParameterOf, ...] = ()
    decoupled: bool = False
    batches: bool = True
    steps: tuple[Step, ...] = ()


# A try-on as an ensemble. Triton asks the decoder behind every response of the sampler; LATENTS
# come with the last one alone, and without them it gives nothing. STEP is there because Triton
# takes no request without any input. An ensemble has no optional inputs: what a request has not is
# empty, and the models behind it give nothing for it.
GARMENTS = tuple(f"GARMENT_{number}" for number in range(1, MAX_PICTURES))
_PICTURES = ("PERSON", *GARMENTS)
_FITS = tuple(f"FIT_{number}" for number in range(1, MAX_PICTURES + 1))
_PROGRESS = (
    "STEP",
    "STEPS",
    "SIGMA",
    "SECONDS",
    "POSITION",
    "PREVIEW",
    "PREVIEW_SIZE",
    *_FITS,
)
_TRY_ON = (
    *(
        Step(
            Model.LATENT_ENCODER,
            {"PICTURE": picture, "RESIZE": "RESIZE"},
            {"LATENTS": picture.lower(), "FIT": f"{picture.lower()}_fit"},
        )
        for picture in _PICTURES
    ),
    Step(
        Model.TEXT_ENCODER,
        {
            "PROMPT": "PROMPT",
            "NEGATIVE_PROMPT": "NEGATIVE_PROMPT",
            "NEGATIVE_GIVEN": "NEGATIVE_GIVEN",
            "RESIZE": "RESIZE",
            **{f"PICTURE_{number}": one for number, one in enumerate(_PICTURES, 1)},
        },
        {"EMBEDDINGS": "embeddings", "NEGATIVE_EMBEDDINGS": "negative_embeddings"},
    ),
    Step(
        Model.SAMPLING,
        {
            "EMBEDDINGS": "embeddings",
            "NEGATIVE_EMBEDDINGS": "negative_embeddings",
            **{f"REFERENCE_{number}": one.lower() for number, one in enumerate(_PICTURES, 1)},
            **{f"FIT_{number}": f"{one.lower()}_fit" for number, one in enumerate(_PICTURES, 1)},
        },
        {**{name: name for name in _PROGRESS}, "LATENTS": "latents"},
    ),
    Step(
        Model.DECODING,
        {"LATENTS": "latents", "STEP": "STEP"},
        {"PICTURE": "PICTURE", "SIZE": "SIZE", "SECONDS": "DECODING_SECONDS"},
    ),
)


def _parameter(name: str, kind: type, option: Option) -> ParameterOf:
    """Describe a sampling option; Triton's integers have 63 bits."""
    if kind is tuple:
        return ParameterOf(name, "string", f"JSON list. {option.help}")
    if kind is float:
        return ParameterOf(name, "double", option.help)
    large = (option.at_most or 0) > _MAX_INT
    note = " From 2**63 on as text." if large else ""
    return ParameterOf(name, "int", f"{option.help}{note}")


_SAMPLING_PARAMETERS = (
    ParameterOf("width", "int", "pixels, a multiple of 16; by default the person's"),
    ParameterOf("height", "int", "likewise"),
    *(_parameter(name, *own) for name, own in SAMPLING_OPTIONS.items()),
    ParameterOf("numerics", "string", "JSON object, as vtryon.v1.Numerics"),
    ParameterOf("preview_every", "int", "a preview after every n-th step; 0: none"),
    ParameterOf("preview_max_pixels", "int", "of one preview"),
    ParameterOf("resume_every", "int", "RESUME_LATENTS after every n-th step"),
    ParameterOf("resume_step", "int", "steps that the earlier attempt did"),
    ParameterOf("key", "string", "a name of this request, for CANCEL"),
    ParameterOf("urgency", "string", "interactive (default) or batch"),
    ParameterOf("tenant", "string", "for fair shares"),
    ParameterOf("timeout_seconds", "double", "no step begins afterwards"),
)
_DECODING_PARAMETERS = (
    ParameterOf("format", "string", "png (default), jpeg or webp"),
    ParameterOf("quality", "int", "of jpeg and webp, 1 to 100"),
)
_STAGES = {
    Model.LATENT_ENCODER: Stage.LATENT_ENCODER,
    Model.TEXT_ENCODER: Stage.TEXT_ENCODER,
    Model.SAMPLING: Stage.SAMPLING,
    Model.DECODING: Stage.DECODING,
}
STAGE_MODELS = tuple(_STAGES)


def stage_of(model: Model) -> Stage:
    """Give the stage that a model computes."""
    return _STAGES[model]


def digest_parameter(model: Model) -> str:
    """Give the name of the parameter by which a request says which weights it expects."""
    return f"{model}_digest"


def _digest_of(model: Model) -> ParameterOf:
    about = "that the model is expected to have; with another it answers MODEL_CHANGED"
    return ParameterOf(digest_parameter(model), "string", about)


# An ensemble passes a request's parameters on to all of its models, so each knows all names.
PARAMETERS = frozenset(
    (
        *(one.name for one in (*_SAMPLING_PARAMETERS, *_DECODING_PARAMETERS)),
        *map(digest_parameter, STAGE_MODELS),
    )
)


_PICTURE = "an encoded picture, PNG, JPEG or WebP"
_FIT = "from width, height, to width, height; 1: padded"
# No parameter, since Triton's response cache knows inputs alone.
_RESIZE = TensorOf("RESIZE", "UINT8", (-1,), "UTF-8: lanczos (default) or area", optional=True)
# An empty tensor stands for a prompt that is not given, so an empty prompt takes a flag.
_NEGATIVE_GIVEN = TensorOf(
    "NEGATIVE_GIVEN", "UINT8", (-1,), "1: guide with NEGATIVE_PROMPT, even an empty one", True
)
_SECONDS = TensorOf("SECONDS", "FP32", (1,), "what computing took, with its company")
_OF_STEPS = (
    TensorOf("STEP", "INT32", (1,), "steps done; 0 while the request waits"),
    TensorOf("STEPS", "INT32", (1,), "steps in all"),
    TensorOf("SIGMA", "FP32", (1,), "the noise level reached"),
    TensorOf("SECONDS", "FP32", (1,), "what the step took, or will be waited"),
    TensorOf("POSITION", "INT32", (1,), "how many go first; while it waits"),
    TensorOf("PREVIEW", "UINT8", (-1,), "PNG of the x0 estimate, where due"),
    TensorOf("PREVIEW_SIZE", "INT32", (2,), "its width and height"),
    *(TensorOf(name, "INT32", (5,), "with the first response, as given") for name in _FITS),
)
_RESULT = (
    TensorOf("PICTURE", "UINT8", (-1,), "encoded"),
    TensorOf("SIZE", "INT32", (2,), "width and height in pixels"),
)


def contracts(channels: int, width: int) -> tuple[Contract, ...]:
    """Give the models of a checkpoint with so many latent channels and embeddings so wide."""
    latents = (channels, -1, -1)
    return (
        _latent_encoder(latents),
        _text_encoder(width),
        _sampling(latents, width),
        _decoding(latents),
        _TRYON,
    )


def _latent_encoder(latents: tuple[int, ...]) -> Contract:
    return Contract(
        Model.LATENT_ENCODER,
        "A picture to latents.",
        (TensorOf("PICTURE", "UINT8", (-1,), f"{_PICTURE}; of none, nothing comes"), _RESIZE),
        (
            TensorOf("LATENTS", "FP32", latents, "normalised; height / 8, width / 8"),
            TensorOf("FIT", "INT32", (5,), _FIT),
            _SECONDS,
        ),
        (_digest_of(Model.LATENT_ENCODER),),
    )


def _text_encoder(width: int) -> Contract:
    pictures = (f"PICTURE_{number}" for number in range(1, MAX_PICTURES + 1))
    return Contract(
        Model.TEXT_ENCODER,
        "A prompt and its pictures to embeddings.",
        (
            TensorOf("PROMPT", "UINT8", (-1,), "UTF-8"),
            TensorOf("NEGATIVE_PROMPT", "UINT8", (-1,), "UTF-8", optional=True),
            _NEGATIVE_GIVEN,
            *(TensorOf(name, "UINT8", (-1,), _PICTURE, optional=True) for name in pictures),
            _RESIZE,
        ),
        (
            TensorOf("EMBEDDINGS", "FP32", (-1, width), "a row per token"),
            TensorOf("NEGATIVE_EMBEDDINGS", "FP32", (-1, width), "where one was asked for"),
            _SECONDS,
        ),
        (_digest_of(Model.TEXT_ENCODER),),
    )


def _sampling(latents: tuple[int, ...], width: int) -> Contract:
    garments = (f"REFERENCE_{number}" for number in range(2, MAX_PICTURES + 1))
    return Contract(
        Model.SAMPLING,
        "Noise to latents: a response per step, the last one with the latents.",
        (
            TensorOf("EMBEDDINGS", "FP32", (-1, width), "of the prompt; needed", optional=True),
            TensorOf("NEGATIVE_EMBEDDINGS", "FP32", (-1, width), "turn guidance on", True),
            TensorOf("REFERENCE_1", "FP32", latents, "of the person; needed", optional=True),
            *(TensorOf(name, "FP32", latents, "of a garment", True) for name in garments),
            TensorOf("NOISE", "FP32", latents, "in place of a seed", True),
            TensorOf("RESUME", "FP32", latents, "latents of an earlier attempt", True),
            *(TensorOf(name, "INT32", (5,), f"{_FIT}; passed on", True) for name in _FITS),
            TensorOf("CANCEL", "UINT8", (-1,), "alone: the key of a request to end", True),
        ),
        (
            *_OF_STEPS,
            TensorOf("RESUME_LATENTS", "FP32", latents, "where due"),
            TensorOf("LATENTS", "FP32", latents, "behind the last step"),
        ),
        (*_SAMPLING_PARAMETERS, _digest_of(Model.SAMPLING)),
        decoupled=True,
        batches=False,
    )


def _decoding(latents: tuple[int, ...]) -> Contract:
    return Contract(
        Model.DECODING,
        "Latents to a picture.",
        (
            TensorOf("LATENTS", "FP32", latents, "normalised; without, nothing comes", True),
            TensorOf("STEP", "INT32", (1,), "of no effect: ensembles have no LATENTS yet", True),
        ),
        (*_RESULT, _SECONDS),
        (*_DECODING_PARAMETERS, _digest_of(Model.DECODING)),
    )


_TRYON = Contract(
    Model.TRYON,
    "Person, garments and prompt to a picture, a response per step.",
    (
        TensorOf("PERSON", "UINT8", (-1,), _PICTURE),
        *(TensorOf(name, "UINT8", (-1,), f"{_PICTURE}; or empty") for name in GARMENTS),
        TensorOf("PROMPT", "UINT8", (-1,), "UTF-8"),
        TensorOf("NEGATIVE_PROMPT", "UINT8", (-1,), "UTF-8; or empty"),
        replace(_NEGATIVE_GIVEN, about=f"{_NEGATIVE_GIVEN.about}; or empty", optional=False),
        TensorOf("RESIZE", "UINT8", (-1,), "UTF-8: lanczos or area; or empty"),
    ),
    (*_OF_STEPS, *_RESULT, replace(_SECONDS, name="DECODING_SECONDS")),
    decoupled=True,
    batches=False,
    steps=_TRY_ON,
)


def option_parameters(options: SamplingOptions) -> dict[str, int | float | str]:
    """Convert the sampling options that are set to parameters.

    Lists are JSON; Triton's integers have a sign, so that larger ones are text.
    """
    own = sampling_fields(options).items()
    return {name: _option_parameter(value) for name, value in own if value not in {None, ()}}


def _option_parameter(value: float | Sequence[float]) -> int | float | str:
    if isinstance(value, Sequence):
        return json.dumps(value)
    return str(value) if isinstance(value, int) and value > _MAX_INT else value
