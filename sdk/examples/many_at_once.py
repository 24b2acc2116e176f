"""Many garments on one person, as many at a time as the mesh takes.

An `OverloadedError` says when to come back.

python many_at_once.py HOST:PORT PERSON GARMENT...
"""

import asyncio
import sys

import vtryon


async def try_on(client: vtryon.Client, person: str, garment: str) -> vtryon.Result:
    while True:
        try:
            return await client.try_on(person, garment, previews=False)
        except vtryon.OverloadedError as full:
            await asyncio.sleep(full.retry_after_seconds)


async def main(target: str, person: str, *garments: str) -> None:
    async with vtryon.Client(target) as client:
        results = await asyncio.gather(*(try_on(client, person, one) for one in garments))
    for garment, result in zip(garments, results, strict=True):
        print(f"{garment}: seed {result.seed}, {result.ledger.wall_seconds:.2f} s")


asyncio.run(main(*sys.argv[1:]))
