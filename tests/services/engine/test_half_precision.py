import numpy as np
import pytest

import vtryon
from vtryon.embedded import embedded_mesh


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
async def test_half_precision_draws_nearly_the_same_picture(client, example, dtype: str) -> None:
    async with embedded_mesh(dtype=dtype) as target, vtryon.Client(target) as half:
        pictures = [
            (await one.try_on(example.person, example.garment, example.prompt, seed=1)).picture
            for one in (client, half)
        ]
        embeddings = await half.text_encoder.encode("x", [example.person])
    whole, halved = (picture.to_numpy().astype(float) for picture in pictures)
    assert np.abs(whole - halved).mean() < 4
    assert embeddings.positive.spec.data_type == dtype.upper()
    assert np.isfinite(embeddings.positive.to_numpy()).all()
