"""Follow a run as it goes: stages, steps, previews; leave it after a few steps with `break`.

python follow_the_steps.py HOST:PORT PERSON GARMENT [STEPS TO WAIT FOR]
"""

import asyncio
import sys

import vtryon


async def main(target: str, person: str, garment: str, enough: str = "200") -> None:
    """Draw, and leave the run after some steps."""
    async with vtryon.Client(target) as client:
        run = client.try_on(person, garment)
        async for event in run:
            match event:
                case vtryon.StageStarted(stage, subject):
                    print(f"{stage} {subject}".strip())
                case vtryon.StepFinished(step, steps, sigma):
                    print(f"step {step} of {steps}, noise {sigma:.2f}")
                    if step == int(enough):
                        break  # cancels the call; the server frees the slot before its next step
                case vtryon.Preview(_, _, vtryon.Picture() as picture):
                    print(f"a preview of {len(picture.data)} bytes")
                case vtryon.Finished(vtryon.Ledger() as ledger):
                    print(f"finished in {ledger.wall_seconds:.2f} s")


asyncio.run(main(*sys.argv[1:]))
