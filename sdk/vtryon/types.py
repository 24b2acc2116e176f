"""Parts of requests: the start messages of the five calls, and the enums they use."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from vtryon.messages import ProtoType
from vtryon.sampling_options import SamplingOptions
from vtryon.v1 import (
    decoding_pb2,
    image_pb2,
    latent_encoder_pb2,
    numerics_pb2,
    pipeline_pb2,
    sampling_pb2,
    stream_pb2,
    tensor_pb2,
    text_encoder_pb2,
)

MAX_PROMPT_CHARACTERS = 2000
MAX_GARMENTS = 3
MAX_LORAS = 8
MAX_LORA_STRENGTH = 100.0  # ComfyUI's, in both directions
MIN_SHIFT, MAX_SHIFT = 0.01, 100.0
SIDE_MULTIPLE, MAX_SIDE = 16, 16384  # pixels of a result; a checkpoint's own limit is lower
MAX_PICTURE_BYTES = 20 * 1024 * 1024
MAX_PICTURE_PIXELS = 25_000_000
MAX_PICTURE_SIDE = 8192
MAX_INLINE_BYTES = 3 * 1024 * 1024


class Stage(StrEnum):
    """The services, by the name they have in Kubernetes, Envoy and on the command line."""

    LATENT_ENCODER = "latent-encoder"
    TEXT_ENCODER = "text-encoder"
    SAMPLING = "sampling"
    DECODING = "decoding"
    PIPELINE = "pipeline"


class Profile(StrEnum):
    """Named sets of numerics."""

    DIFFUSERS = "diffusers"
    COMFY = "comfy"
    LIGHTNING = "lightning"


class SigmaSchedule(StrEnum):
    """How noise levels are spread over the steps."""

    DYNAMIC = "dynamic"
    SIMPLE = "simple"
    LINEAR = "linear"


class GuidanceNorm(StrEnum):
    """How the norm of guided predictions is limited."""

    VELOCITY = "velocity"
    X0 = "x0"
    NONE = "none"


class ResizeFilter(StrEnum):
    """How pictures are scaled."""

    LANCZOS = "lanczos"
    AREA = "area"


class RopeLayout(StrEnum):
    """How rotary positions are laid out; see numerics.proto."""

    DIFFUSERS = "diffusers"
    COMFY = "comfy"


class Priority(StrEnum):
    """Who goes first."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


class ImageFormat(StrEnum):
    """Encodings of pictures."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"


class FitMethod(StrEnum):
    """How a picture was brought to the checkpoint's size."""

    AREA = "area"
    PAD = "pad"


class DataType(StrEnum):
    """Element types, named as in the Open Inference Protocol."""

    FP32 = "FP32"
    FP16 = "FP16"
    BF16 = "BF16"
    INT64 = "INT64"
    UINT8 = "UINT8"
    BOOL = "BOOL"

    @property
    def byte_size(self) -> int:
        """Bytes of one element."""
        return {"FP32": 4, "FP16": 2, "BF16": 2, "INT64": 8, "UINT8": 1, "BOOL": 1}[self.value]


class PayloadKind(StrEnum):
    """Content of a payload; see tensor.proto."""

    IMAGE = "image"
    PERSON_IMAGE = "person_image"
    GARMENT_IMAGE = "garment_image"
    EMBEDDINGS = "embeddings"
    NEGATIVE_EMBEDDINGS = "negative_embeddings"
    LATENTS = "latents"
    REFERENCE_LATENTS = "reference_latents"
    NOISE = "noise"
    RESUME_LATENTS = "resume_latents"


@dataclass(frozen=True, slots=True)
class TensorSpec(ProtoType):
    """Element type and shape of a tensor."""

    proto = tensor_pb2.Tensor
    data_type: DataType | None
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EncodedImage(ProtoType):
    """Format and size of an encoded picture, in pixels; 0 is unknown."""

    proto = image_pb2.EncodedImage
    format: ImageFormat | None = None
    width: int = 0
    height: int = 0


@dataclass(frozen=True, slots=True)
class Payload(ProtoType):
    """The declaration of one payload; its bytes follow in chunks."""

    proto = tensor_pb2.Payload
    kind: PayloadKind | None
    byte_length: int
    tensor: TensorSpec | None = None
    image: EncodedImage | None = None


@dataclass(frozen=True, slots=True)
class Numerics(ProtoType):
    """A profile, and overrides of its choices; None uses the profile's choice."""

    proto = numerics_pb2.Numerics
    profile: Profile | None = None
    schedule: SigmaSchedule | None = None
    shift: float | None = None
    guidance_norm: GuidanceNorm | None = None
    resize: ResizeFilter | None = None
    rope_layout: RopeLayout | None = None


@dataclass(frozen=True, slots=True)
class PreviewPolicy(ProtoType):
    """Which previews the caller wants: after every n-th step, of at most so many pixels."""

    proto = stream_pb2.PreviewPolicy
    every_steps: int = 1
    max_pixels: int = 0


@dataclass(frozen=True, slots=True)
class Lora(ProtoType):
    """A LoRA that applies to a request.

    Attributes:
        name: by which the sampler's setting `loras` has it.
        strength: −100 to 100; None is 1.
    """

    proto = sampling_pb2.Lora
    name: str
    strength: float | None = None


@dataclass(frozen=True, slots=True)
class ResumePoint(ProtoType):
    """Where an earlier attempt stopped; `ResumeChunk.point` creates one.

    Attributes:
        step: number of completed steps.
        model_digest: of the sampler that ran them; a sampler with another model rejects it.
        encoders_digest: of the encoders; a pipeline with other encoders rejects it.
    """

    proto = sampling_pb2.ResumePoint
    step: int
    model_digest: str = ""
    encoders_digest: str = ""


@dataclass(frozen=True, slots=True)
class EncodeLatentsStart(ProtoType):
    """Start of `LatentEncoderService.Encode`."""

    proto = latent_encoder_pb2.EncodeLatentsStart
    payloads: tuple[Payload, ...] = ()
    numerics: Numerics | None = None


@dataclass(frozen=True, slots=True)
class EncodeTextStart(ProtoType):
    """Start of `TextEncoderService.Encode`."""

    proto = text_encoder_pb2.EncodeTextStart
    payloads: tuple[Payload, ...] = ()
    numerics: Numerics | None = None
    prompt: str = ""
    negative_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class SampleStart(SamplingOptions):
    """Start of `SamplingService.Sample`."""

    proto = sampling_pb2.SampleStart
    payloads: tuple[Payload, ...] = ()
    numerics: Numerics | None = None
    width: int = 0
    height: int = 0
    previews: PreviewPolicy | None = None
    priority: Priority | None = None
    resume: ResumePoint | None = None
    resume_every: int = 0
    loras: tuple[Lora, ...] = ()


@dataclass(frozen=True, slots=True)
class DecodeStart(ProtoType):
    """Start of `DecodingService.Decode`."""

    proto = decoding_pb2.DecodeStart
    payloads: tuple[Payload, ...] = ()
    format: ImageFormat | None = None
    quality: int | None = None


@dataclass(frozen=True, slots=True)
class TryOnOptions(SamplingOptions):
    """Everything of a try-on but its pictures."""

    proto = pipeline_pb2.TryOnOptions
    prompt: str = ""
    negative_prompt: str | None = None
    numerics: Numerics | None = None
    width: int | None = None
    height: int | None = None
    previews: PreviewPolicy | None = None
    priority: Priority | None = None
    format: ImageFormat | None = None
    quality: int | None = None
    loras: tuple[Lora, ...] = ()


def settled(options: TryOnOptions, seed: int) -> TryOnOptions:
    """Fill in the seed, and drop a negative prompt without guidance.

    At a scale of 1 and below guidance has no effect, so that its prompt need not be encoded.
    """
    return replace(
        options,
        seed=seed if options.seed is None else options.seed,
        negative_prompt=None if options.unguided else options.negative_prompt,
    )


@dataclass(frozen=True, slots=True)
class TryOnStart(ProtoType):
    """Start of `PipelineService.TryOn`."""

    proto = pipeline_pb2.TryOnStart
    payloads: tuple[Payload, ...] = ()
    options: TryOnOptions | None = None
    resume: ResumePoint | None = None
    resume_every: int = 0


@dataclass(frozen=True, slots=True)
class TryOnInline(ProtoType):
    """The one request of `PipelineService.TryOnInline`."""

    proto = pipeline_pb2.TryOnInlineRequest
    person: bytes = b""
    garments: tuple[bytes, ...] = ()
    options: TryOnOptions | None = None


Start = EncodeLatentsStart | EncodeTextStart | SampleStart | DecodeStart | TryOnStart
