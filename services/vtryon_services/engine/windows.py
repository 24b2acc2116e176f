"""The vision tower's windowed attention, with all windows in one product.

The library calls attention once per window, 29 times in a layer for two pictures of 384²; on a GPU
these 900 sequential launches take five times as long as the computation.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VLVisionAttention,
    apply_rotary_pos_emb_vision,
)


class Windows(NamedTuple):
    """Patch indices of each window, padded to the longest window.

    Shapes:
        patches: (windows, longest), indices; places: (patches,), indices into that, flattened.
        mask: (windows, 1, 1, longest), True for patches; None without padding.
    """

    patches: torch.Tensor
    places: torch.Tensor
    mask: torch.Tensor | None

    @classmethod
    def of(cls, bounds: torch.Tensor) -> Windows:
        """Lay out windows; `bounds`: (windows + 1,), where each begins, and the last one's end."""
        starts, lengths = bounds[:-1].long(), bounds.diff().long()
        shortest, longest = torch.stack([lengths.min(), lengths.max()]).tolist()
        columns = torch.arange(longest, device=bounds.device)
        there = columns < lengths[:, None]
        patches = starts[:, None] + torch.where(there, columns, 0)
        if shortest == longest:
            return cls(patches, torch.arange(patches.numel(), device=bounds.device), None)
        return cls(patches, there.flatten().nonzero()[:, 0], there[:, None, None, :])


class _Latest:
    """The windows of the tensor seen last: the layers of a forward share two of them."""

    def __init__(self) -> None:
        self._found: tuple[torch.Tensor, Windows] | None = None

    def of(self, bounds: torch.Tensor) -> Windows:
        found = self._found
        if found is None or found[0] is not bounds:
            self._found = found = (bounds, Windows.of(bounds))
        return found[1]


class WindowAttention(Qwen2_5_VLVisionAttention):
    """The library's attention of a layer, with its weights, over all windows at once."""

    def __init__(self, attention: Qwen2_5_VLVisionAttention, latest: _Latest) -> None:
        nn.Module.__init__(self)
        self.qkv, self.proj = attention.qkv, attention.proj
        self.num_heads, self.scaling = attention.num_heads, attention.scaling
        self._latest = latest

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: Any,
    ) -> torch.Tensor:
        """Attend, each patch to those of its own window.

        Shapes:
            hidden_states and result: (patches, width).
        """
        windows = self._latest.of(cu_seqlens)
        length = hidden_states.shape[0]
        query, key, value = self.qkv(hidden_states).view(length, 3, self.num_heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        query, key, value = (one[windows.patches].transpose(1, 2) for one in (query, key, value))
        attended = scaled_dot_product_attention(
            query, key, value, attn_mask=windows.mask, scale=self.scaling
        )
        return self.proj(attended.transpose(1, 2).flatten(0, 1)[windows.places].flatten(1))


def merge_windows_(tower: nn.Module) -> None:
    """Replace the attention of every layer of a vision tower, in place."""
    latest = _Latest()
    for block in tower.get_submodule("blocks").children():
        block.attn = WindowAttention(block.attn, latest)
