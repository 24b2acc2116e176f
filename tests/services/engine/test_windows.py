import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
)

from vtryon_services.engine.windows import merge_windows_

# In patches. Windows of 8² patches fit none, some and all of them; one picture, and several.
GRIDS = [[(1, 8, 8)], [(1, 16, 16)], [(1, 12, 20)], [(1, 4, 6), (1, 28, 26), (1, 8, 16)]]


@pytest.mark.parametrize("grids", GRIDS, ids=str)
@torch.no_grad()
def test_the_windows_together_give_what_the_library_gives_one_by_one(grids) -> None:
    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(
        depth=3,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=24,
        fullatt_block_indexes=[1],
    )
    tower = Qwen2_5_VisionTransformerPretrainedModel._from_config(config).eval()
    patches = torch.randn(sum(rows * columns for _, rows, columns in grids), 3 * 2 * 14 * 14)
    theirs = tower(patches, torch.tensor(grids))
    merge_windows_(tower)
    ours = tower(patches, torch.tensor(grids))
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output, atol=1e-5, rtol=1e-5)
