"""Tensor throughput of the SDK and a real service, relative to raw gRPC bytes in equal chunks.

    python -m vtryon_loadtests.tensor_streaming [--mebibytes 64] [--rounds 21] [--json]

Both sides run as processes of their own on this machine, measured in turn. A side's figure is the
time until the last byte has been received; the service's includes assembling the tensor and looking
for NaN, without the computation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

import vtryon
from vtryon.types import DataType, PayloadKind, TensorSpec

MEBIBYTE = 1024 * 1024
_RAW = "/raw.Bytes/Send"


@dataclass(frozen=True, slots=True)
class StreamingRow:
    """Medians of one chunk size, in MiB/s, and the ratio with its range over the rounds."""

    chunk_kibibytes: int
    raw: float
    vtryon: float
    ratio: float
    ratio_low: float
    ratio_high: float


async def serve_raw() -> None:
    """Serve a call that discards the received bytes; prints its port."""

    async def send(requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext) -> bytes:
        total = 0
        async for request in requests:
            total += len(request)
        return str(total).encode()

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.stream_unary_rpc_method_handler(send)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("raw.Bytes", {"Send": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"address=127.0.0.1:{port}", file=sys.stderr, flush=True)
    await server.wait_for_termination()


@contextmanager
def running(*command: str, **variables: str) -> Iterator[str]:
    """Run a server until the block ends; gives its address, which it prints."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "address" in line)
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or its logging blocks
        yield "127.0.0.1:" + line.split("127.0.0.1:")[1].split()[0].strip('",')
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


async def time_raw(channel: grpc.aio.Channel, data: bytes, chunk: int) -> float:
    """Send bytes as raw messages; gives seconds."""

    async def pieces() -> AsyncIterator[bytes]:
        for offset in range(0, len(data), chunk):
            yield data[offset : offset + chunk]

    started = time.perf_counter()
    await channel.stream_unary(_RAW)(pieces())
    return time.perf_counter() - started


async def time_service(decoding: vtryon.Decoding, tensor: vtryon.Tensor, chunk: int) -> float:
    """Send a tensor to the decoder; returns seconds without its compute time."""
    outgoing = [tensor.outgoing(PayloadKind.LATENTS)]
    started = time.perf_counter()
    call = decoding.open(vtryon.types.DecodeStart(), outgoing, chunk_bytes=chunk)
    finished = None
    async with call:
        async for event in call:
            finished = event
    elapsed = time.perf_counter() - started
    assert isinstance(finished, vtryon.Finished)
    assert finished.ledger is not None
    return elapsed - finished.ledger.hops[0].compute_seconds


async def measure(mebibytes: int, rounds: int) -> list[StreamingRow]:
    """Measure both sides in turn, for three chunk sizes."""
    side = int((mebibytes * MEBIBYTE / 4 / 16) ** 0.5) // 2 * 2
    spec = TensorSpec(DataType.FP32, (16, side, side))
    data = bytes(16 * side * side * 4)
    tensor = vtryon.Tensor(spec, data)
    scripted = {"VTRYON_BACKEND": "scripted", "VTRYON_DECODING_LISTEN": "127.0.0.1:0"}
    service = running("vtryon_services.stages.decoding", **scripted)
    with service as served, running(__spec__.name, "--serve-raw") as raw:
        async with vtryon.Channel(served) as channel, vtryon.Channel(raw) as raw_channel:
            decoding = vtryon.Decoding(channel)
            rows = []
            for kibibytes in (64, 256, 1024):
                chunk = kibibytes * 1024
                pairs = []
                for number in range(rounds + 1):
                    one = await time_raw(raw_channel.grpc, data, chunk)
                    other = await time_service(decoding, tensor, chunk)
                    if number:  # the first warms up
                        pairs.append((one, other))
                rows.append(_row(kibibytes, len(data) / MEBIBYTE, pairs))
            return rows


def _row(kibibytes: int, mebibytes: float, pairs: list[tuple[float, float]]) -> StreamingRow:
    ratios = sorted(raw / ours for raw, ours in pairs)
    return StreamingRow(
        kibibytes,
        mebibytes / statistics.median(raw for raw, _ in pairs),
        mebibytes / statistics.median(ours for _, ours in pairs),
        statistics.median(ratios),
        ratios[0],
        ratios[-1],
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mebibytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve-raw", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_raw:
        asyncio.run(serve_raw())
        return
    rows = asyncio.run(measure(arguments.mebibytes, arguments.rounds))
    if arguments.json:
        print(
            json.dumps(
                [{name: getattr(row, name) for name in StreamingRow.__slots__} for row in rows]
            )
        )
        return
    print(f"{arguments.mebibytes} MiB, {arguments.rounds} rounds, {platform.machine()}")
    print(f"{'chunk':>9} {'raw gRPC':>12} {'vtryon':>12} {'ratio (range)':>22}")
    for row in rows:
        spread = f"{row.ratio:.2f} ({row.ratio_low:.2f} to {row.ratio_high:.2f})"
        print(
            f"{row.chunk_kibibytes:>5} KiB {row.raw:>6.0f} MiB/s "
            f"{row.vtryon:>6.0f} MiB/s {spread:>22}"
        )


if __name__ == "__main__":
    main()
