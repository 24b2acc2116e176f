"""The shortest way: await the run, save the picture.

python one_picture.py HOST:PORT PERSON GARMENT RESULT
"""

import asyncio
import sys

import vtryon


async def main(target: str, person: str, garment: str, result: str) -> None:
    """Draw one picture, and save it."""
    async with vtryon.Client(target) as client:
        done = await client.try_on(person, garment, seed=7)
        done.picture.save(result)
        print(f"{result}: {done.picture.size}, {done.ledger.wall_seconds:.2f} s")


asyncio.run(main(*sys.argv[1:]))
