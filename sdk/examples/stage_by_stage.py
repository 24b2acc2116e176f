"""Each stage alone: encode once, sample twice with two seeds, decode both.

python stage_by_stage.py HOST:PORT PERSON GARMENT OUT_FOLDER
"""

import asyncio
import sys
from pathlib import Path

import vtryon


async def main(target: str, person: str, garment: str, out: str) -> None:
    """Encode, sample twice, and decode both."""
    pictures = [person, garment]
    async with vtryon.Client(target) as client:
        embeddings = await client.text_encoder.encode("Put the shirt on", pictures)
        references = await client.latent_encoder.encode(pictures)
        given = vtryon.Conditioning(embeddings, references)
        _, height, width = references[0].spec.shape
        for seed in (1, 2):
            start = vtryon.SampleStart(width=width * 8, height=height * 8, steps=4, seed=seed)
            latents = await client.sampling.sample(start, given)
            picture = await client.decoding.decode(latents)
            print(picture.save(Path(out) / f"seed-{seed}.png"))


asyncio.run(main(*sys.argv[1:]))
