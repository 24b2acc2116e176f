"""Many garments on one person, as many at a time as the mesh takes.

The client waits and sends again what the mesh has no capacity for, within `timeout_seconds`.

python many_at_once.py HOST:PORT PERSON GARMENT...
"""

import asyncio
import sys

import vtryon


async def main(target: str, person: str, *garments: str) -> None:
    """Draw every garment on the person."""
    async with vtryon.Client(target) as client:
        runs = [client.try_on(person, one, timeout_seconds=600) for one in garments]
        results = await asyncio.gather(*runs)
    for garment, result in zip(garments, results, strict=True):
        print(f"{garment}: seed {result.seed}, {result.ledger.wall_seconds:.2f} s")


asyncio.run(main(*sys.argv[1:]))
