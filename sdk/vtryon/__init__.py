"""The SDK of vtryon: two pictures and a sentence in, one picture out.

async with vtryon.Client("localhost:50050") as client:
    result = await client.try_on("person.png", "garment.png", seed=7)
    result.picture.save("result.png")
"""

from vtryon.client import Client
from vtryon.errors import (
    AccessError,
    DeadlineError,
    OverloadedError,
    ProtocolError,
    Reason,
    RequestError,
    RunCancelledError,
    SettingsError,
    StageError,
    UnavailableError,
    Violation,
    VtryonError,
)
from vtryon.events import (
    Accepted,
    Event,
    Finished,
    Fit,
    Hop,
    Ledger,
    Preview,
    Queued,
    StageFinished,
    StageStarted,
    StepFinished,
    UnusedOption,
)
from vtryon.jobs import Job, JobError, JobPage, Jobs, JobState, JobUpdate
from vtryon.pictures import Picture
from vtryon.run import Result, Run
from vtryon.stages import (
    Conditioning,
    Decoding,
    Embeddings,
    LatentEncoder,
    Sampling,
    TextEncoder,
)
from vtryon.tensors import Tensor
from vtryon.types import (
    GuidanceNorm,
    ImageFormat,
    Lora,
    Numerics,
    PreviewPolicy,
    Priority,
    Profile,
    ResizeFilter,
    ResumePoint,
    RopeLayout,
    SampleStart,
    SigmaSchedule,
    Stage,
    TryOnOptions,
)
from vtryon.wire.channel import Channel, Tls
from vtryon.wire.retry import RetryPolicy
from vtryon.wire.transport import Transport

__version__ = "0.2.0"

__all__ = [
    "Accepted",
    "AccessError",
    "Channel",
    "Client",
    "Conditioning",
    "DeadlineError",
    "Decoding",
    "Embeddings",
    "Event",
    "Finished",
    "Fit",
    "GuidanceNorm",
    "Hop",
    "ImageFormat",
    "Job",
    "JobError",
    "JobPage",
    "JobState",
    "JobUpdate",
    "Jobs",
    "LatentEncoder",
    "Ledger",
    "Lora",
    "Numerics",
    "OverloadedError",
    "Picture",
    "Preview",
    "PreviewPolicy",
    "Priority",
    "Profile",
    "ProtocolError",
    "Queued",
    "Reason",
    "RequestError",
    "ResizeFilter",
    "Result",
    "ResumePoint",
    "RetryPolicy",
    "RopeLayout",
    "Run",
    "RunCancelledError",
    "SampleStart",
    "Sampling",
    "SettingsError",
    "SigmaSchedule",
    "Stage",
    "StageError",
    "StageFinished",
    "StageStarted",
    "StepFinished",
    "Tensor",
    "TextEncoder",
    "Tls",
    "Transport",
    "TryOnOptions",
    "UnavailableError",
    "UnusedOption",
    "Violation",
    "VtryonError",
]
