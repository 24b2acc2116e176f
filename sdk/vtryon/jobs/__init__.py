"""Jobs: try-ons that outlive their connection.

job = await client.jobs.create("person.png", "garment.png", request_id="order-4711")
async for update in client.jobs.watch(job.id):
    ...
picture = await client.jobs.picture(job.id)
"""

from vtryon.jobs.client import Jobs
from vtryon.jobs.types import (
    CancelJob,
    CreateJobStart,
    EraseJob,
    FetchPicture,
    GetJob,
    Job,
    JobError,
    JobPage,
    JobState,
    JobUpdate,
    ListJobs,
    WatchJob,
)

__all__ = [
    "CancelJob",
    "CreateJobStart",
    "EraseJob",
    "FetchPicture",
    "GetJob",
    "Job",
    "JobError",
    "JobPage",
    "JobState",
    "JobUpdate",
    "Jobs",
    "ListJobs",
    "WatchJob",
]
