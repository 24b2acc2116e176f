"""Storage that speaks S3, with a bucket called tansu: `python -m tests.support.s3 PORT`."""

from __future__ import annotations

import sys
import threading

import boto3
from moto.server import ThreadedMotoServer

if __name__ == "__main__":
    port = int(sys.argv[1])
    ThreadedMotoServer("127.0.0.1", port, verbose=False).start()
    boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    ).create_bucket(Bucket="tansu")
    threading.Event().wait()
