"""Settings of the published Qwen-Image-Edit models that no shape of a tensor tells.

Source: the configurations of Qwen/Qwen-Image-Edit-2511 and Qwen/Qwen2.5-VL-7B-Instruct.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SCHEDULER: Mapping[str, Any] = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}
ROPE: Mapping[str, Any] = {
    "rope_type": "default",
    "rope_theta": 1e6,
    "mrope_section": [16, 24, 24],
}
TEXT_HEAD = 128  # of the language model: twice the sum of mrope_section
RMS_NORM_EPS = 1e-6  # of the language model
VISION_HEAD = 80
VISION_DEPTH = 32
VISION: Mapping[str, Any] = {
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
TRANSFORMER_ROPE = (16, 56, 56)
LATENT_CHANNELS = 16  # whose mean and deviation are the defaults of the VAE's class
PROCESSOR: Mapping[str, Any] = {
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16384},
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "patch_size": 14,
    "merge_size": 2,
    "temporal_patch_size": 2,
}
