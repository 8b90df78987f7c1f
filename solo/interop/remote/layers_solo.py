"""The decoder layer and the patch embeddings; see `modeling_solo.py`.

Letters in names and comments: B rows, S tokens of this step, R tokens of all steps so far, N = B * S, D width, H query
heads, K key/value heads, C head dimension, E experts of a MoE, A active experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_solo import SoloMonolithConfig

# Rows of patches_grid that mark learned visual tokens.
BEGIN_MARKER, ROW_MARKER = -1, -2


class RMSNorm(nn.Module):
    """Root-mean-square norm with float32 statistics."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        return self.weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def make_norm(kind: str, width: int, eps: float) -> nn.Module:
    return {"none": lambda *_: nn.Identity(), "rms": RMSNorm, "layer": nn.LayerNorm}[kind](width, eps)


class Routing(NamedTuple):
    """Flat indices (of N) of patches and of text; `order` restores the order of their concatenation."""

    patches: Tensor
    text: Tensor
    order: Tensor

    @classmethod
    def of(cls, is_patch_BS: Tensor) -> Routing:
        flat = is_patch_BS.reshape(-1)
        patches, text = flat.nonzero()[:, 0], (~flat).nonzero()[:, 0]
        return cls(patches, text, torch.cat([patches, text]).argsort())


class PerModality(nn.Module):
    """A component with shared weights, or with modality experts: weights for patches and weights for text."""

    def __init__(self, sharing: str, make: Callable[[], nn.Module]):
        super().__init__()
        self.is_shared = sharing == "shared"
        if self.is_shared:
            self.shared = make()
        else:
            self.patches, self.text = make(), make()

    def forward(self, x_ND: Tensor, routing: Routing | None) -> Any:
        """`routing` is None if all tokens are text."""
        if self.is_shared:
            return self.shared(x_ND)
        if routing is None:
            return self.text(x_ND)
        of_patches, of_text = self.patches(x_ND[routing.patches]), self.text(x_ND[routing.text])
        if isinstance(of_text, Tensor):
            return torch.cat([of_patches, of_text])[routing.order]
        return tuple(torch.cat(both)[routing.order] for both in zip(of_patches, of_text, strict=True))


class QKV(nn.Module):
    """Queries [N, H, .], keys [N, K, .] and values [N, K, .], with norms over each head's queries and keys.

    A head may be in parts (`head_parts`): slices of q and k, then of q_grid and k_grid. The parts have norms of their
    own, or share one.
    """

    def __init__(self, config: SoloMonolithConfig):
        super().__init__()
        model, width, bias = config.model, config.model["width"], config.model["bias"] != "none"
        heads, kv_heads = model["heads"], model["kv_heads"]
        self.heads, self.kv_heads = heads, kv_heads
        self.q = nn.Linear(width, heads * config.head_dim, bias=bias)
        self.k = nn.Linear(width, kv_heads * config.head_dim, bias=bias)
        self.v = nn.Linear(width, kv_heads * config.value_dim, bias=bias)
        grid = sum(part["width"] for part in config.head_parts if part["projection"] == "grid")
        self.q_grid = nn.Linear(width, heads * grid, bias=bias) if grid else None
        self.k_grid = nn.Linear(width, kv_heads * grid, bias=bias) if grid else None
        self.normed: dict[str, int] = {}
        for part in config.head_parts or [{"axis": "time", "width": config.head_dim, "norm": "own"}]:
            name = "norm" if part["axis"] == "time" else f"norm_{part['axis']}"
            name = "norm_grid" if part["norm"] == "grid" else name
            self.normed[name] = self.normed.get(name, 0) + part["width"]
        for name, dim in self.normed.items():
            setattr(self, f"q_{name}", make_norm(model["qk_norm"], dim, model["norm_eps"]))
            setattr(self, f"k_{name}", make_norm(model["qk_norm"], dim, model["norm_eps"]))

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        def heads(linear: nn.Linear, count: int) -> Tensor:
            return linear(x_ND).unflatten(-1, (count, -1))

        q, k, v = heads(self.q, self.heads), heads(self.k, self.kv_heads), heads(self.v, self.kv_heads)
        if self.q_grid is not None and self.k_grid is not None:
            q = torch.cat([q, heads(self.q_grid, self.heads)], dim=-1)
            k = torch.cat([k, heads(self.k_grid, self.kv_heads)], dim=-1)
        return self._normed(q, "q"), self._normed(k, "k"), v

    def _normed(self, x: Tensor, of: str) -> Tensor:
        parts = x.split(list(self.normed.values()), dim=-1)
        return torch.cat([getattr(self, f"{of}_{n}")(part) for n, part in zip(self.normed, parts, strict=True)], dim=-1)


class FFN(nn.Module):
    """swiglu: down(silu(gate x) * up x); relu2: down(relu(up x)^2)."""

    def __init__(self, config: SoloMonolithConfig):
        super().__init__()
        width, inner, bias = config.model["width"], config.model["ffn_width"], config.model["bias"] == "all"
        self.gate = nn.Linear(width, inner, bias=bias) if config.model["ffn"] == "swiglu" else None
        self.up = nn.Linear(width, inner, bias=bias)
        self.down = nn.Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        return self.down(F.relu(up).square() if self.gate is None else F.silu(self.gate(x)) * up)


class MoE(nn.Module):
    """Mixture of experts: a learned router sends every token to its top-k experts; no token is dropped."""

    def __init__(self, config: SoloMonolithConfig):
        super().__init__()
        moe, width = config.model["moe"], config.model["width"]
        inner = moe["width"] or config.model["ffn_width"] // moe["top_k"]
        self.count, self.top_k = moe["count"], moe["top_k"]
        self.router = nn.Linear(width, self.count, bias=False)
        self.gate = nn.Parameter(torch.empty(self.count, inner, width))
        self.up = nn.Parameter(torch.empty(self.count, inner, width))
        self.down = nn.Parameter(torch.empty(self.count, width, inner))

    def forward(self, x_ND: Tensor) -> Tensor:
        probability_NE = F.softmax(x_ND.float() @ self.router.weight.float().T, dim=-1)
        gate_NA, chosen_NA = probability_NE.topk(self.top_k, dim=-1)
        if self.top_k > 1:
            gate_NA = gate_NA / gate_NA.sum(dim=-1, keepdim=True)
        out_ND = torch.zeros_like(x_ND)
        for expert in range(self.count):
            rows, rank = (chosen_NA == expert).nonzero(as_tuple=True)
            x = x_ND[rows]
            inner = F.silu(x @ self.gate[expert].T) * (x @ self.up[expert].T)
            out = (inner @ self.down[expert].T) * gate_NA[rows, rank, None].to(x.dtype)
            out_ND = out_ND.index_add(0, rows, out)
        return out_ND


class MoEFFN(nn.Module):
    """A MoE in place of the FFN."""

    def __init__(self, config: SoloMonolithConfig):
        super().__init__()
        self.moe = MoE(config)

    def forward(self, x_ND: Tensor, routing: Routing | None) -> Tensor:
        return self.moe(x_ND)


class InnerEmbed(nn.Module):
    """Base of conv and grid: a convolution of stride `inner_size`, computed as a linear layer of each inner patch."""

    def __init__(self, config: SoloMonolithConfig):
        super().__init__()
        embed = config.model["patch_embed"]
        self.size, self.channels = embed["inner_size"], embed["inner_width"]
        self.side = config.image["patch_size"] // self.size
        self.joined = self.side**2 * self.channels
        self.inner = nn.Linear(3 * self.size**2, self.channels)

    def convolve(self, pixels: Tensor) -> Tensor:
        """Maps pixels [n, p*p*3], channel by channel, to inner patches row by row [n, side * side, channels]."""
        cut = pixels.view(-1, 3, self.side, self.size, self.side, self.size).permute(0, 2, 4, 1, 3, 5)
        return self.inner(cut.reshape(-1, self.side**2, 3 * self.size**2))

    def rows_and_columns(self, grid: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Returns the row and column of each inner patch, [n, side * side] each, for patches at places [n, 2]."""
        places = _needed(grid).to(device)
        offset = torch.arange(self.side, device=device)
        rows = places[:, :1] * self.side + offset.repeat_interleave(self.side)
        return rows, places[:, 1:] * self.side + offset.repeat(self.side)


def rotate_by_place(x: Tensor, rows: Tensor, columns: Tensor, theta: float) -> Tensor:
    """Rotates channels [n, inner patches, channels] by column (first half) and row (second half), in float32.

    Within a half, pair j is the channels (2j, 2j + 1), at the frequency theta^(-2j / half).
    """
    half = x.shape[-1] // 2
    frequency = theta ** -(torch.arange(0, half, 2, dtype=torch.float32, device=x.device) / half)
    angles = torch.cat([places[..., None].float() * frequency for places in (columns, rows)], dim=-1)
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.flatten(-2).to(x.dtype)


class ConvEmbed(InnerEmbed):
    """GELU and a linear layer of the concatenated inner patches; some models have learned tokens among the patches."""

    def __init__(self, config: SoloMonolithConfig):
        super().__init__(config)
        width = config.model["width"]
        self.merge = nn.Linear(self.joined, width)
        self.rotation_theta = config.model["patch_embed"].get("rotation_theta")
        markers = config.image.get("markers")
        self.begin_marker = nn.Parameter(torch.empty(width)) if markers else None
        self.row_marker = nn.Parameter(torch.empty(width)) if markers else None

    def forward(self, pixels: Tensor, grid: Tensor | None) -> Tensor:
        """Maps pixels [n, p*p*3] at places [n, 2] of the image to [n, D]."""
        x = F.gelu(self.convolve(pixels))
        if self.rotation_theta is not None:
            x = rotate_by_place(x, *self.rows_and_columns(grid, x.device), self.rotation_theta)
        x = self.merge(x.flatten(1))
        for marker, place in ((self.begin_marker, BEGIN_MARKER), (self.row_marker, ROW_MARKER)):
            if marker is not None:
                x = torch.where(_needed(grid).to(x.device)[:, :1] == place, marker, x)
        return x


class GridEmbed(InnerEmbed):
    """A learned position for every inner patch of a tile, then LayerNorm and an MLP over each patch."""

    def __init__(self, config: SoloMonolithConfig):
        super().__init__(config)
        embed, width = config.model["patch_embed"], config.model["width"]
        self.grid_side, self.tile_side = embed["grid_side"], config.image["tile_size"] // self.size
        self.positions = nn.Parameter(torch.empty(embed["class_slot"] + self.grid_side**2, self.channels))
        # Unused; published weights include it.
        self.class_token = nn.Parameter(torch.empty(self.channels)) if embed["class_slot"] else None
        self.norm = nn.LayerNorm(self.joined, 1e-5)
        self.hidden, self.out = nn.Linear(self.joined, width), nn.Linear(width, width)

    def forward(self, pixels: Tensor, grid: Tensor | None) -> Tensor:
        """Maps pixels [n, p*p*3] at places [n, 2] of the tile to [n, D]."""
        rows, columns = self.rows_and_columns(grid, pixels.device)
        x = self.convolve(pixels)
        x = x + self.table().to(x.dtype)[rows * self.tile_side + columns]
        return self.out(F.gelu(self.hidden(self.norm(x.flatten(1)))))

    def table(self) -> Tensor:
        """Returns the positions of inner patches, float32 [side * side, channels], resampled to the tile's side."""
        table = self.positions[self.positions.shape[0] - self.grid_side**2 :].float()
        if self.tile_side == self.grid_side:
            return table
        square = table.view(1, self.grid_side, self.grid_side, -1).permute(0, 3, 1, 2)
        side = (self.tile_side, self.tile_side)
        return F.interpolate(square, side, mode="bicubic", align_corners=False)[0].flatten(1).T


def _needed(grid: Tensor | None) -> Tensor:
    if grid is None:
        raise ValueError("this model needs patches_grid: the row and column of every patch in its image or tile")
    return grid


class LinearEmbed(nn.Linear):
    """A linear layer of all pixels of a patch."""

    def __init__(self, config: SoloMonolithConfig):
        pixels = config.image["patch_size"] ** 2 * 3
        super().__init__(pixels, config.model["width"], bias=config.model["patch_embed"]["bias"])

    def forward(self, pixels: Tensor, grid: Tensor | None) -> Tensor:
        return super().forward(pixels)


EMBEDDERS: dict[str, Callable[[SoloMonolithConfig], nn.Module]] = {
    "linear": LinearEmbed,
    "conv": ConvEmbed,
    "grid": GridEmbed,
}


def rotate(x_BHSC: Tensor, cos: Tensor, sin: Tensor, widths: list[int] | None = None) -> Tensor:
    """Rotates the pairs (i, i + r/2) of each span of r dimensions, in float32; the spans come first.

    The angles' cosines and sines are [B, S, .], for the pairs of all spans; by default there is one span.
    """
    widths = widths or [2 * cos.shape[-1]]
    halves, rest = [width // 2 for width in widths], x_BHSC.shape[-1] - sum(widths)
    *parts, unchanged = x_BHSC.split([*widths, rest], dim=-1)
    found = []
    for part, c, s in zip(parts, cos[:, None].split(halves, -1), sin[:, None].split(halves, -1), strict=True):
        first, second = part.float().chunk(2, dim=-1)
        found.append(torch.cat([first * c - second * s, second * c + first * s], dim=-1).to(part.dtype))
    return torch.cat([*found, unchanged], dim=-1)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Returns attention outputs [B, S, H, C] and weights [B, H, S, R] of queries [B, H, S, C]; float32 softmax."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class SoloMonolithLayer(GradientCheckpointingLayer):
    """x + out(attention(norm x)), then x + ffn(norm x)."""

    def __init__(self, config: SoloMonolithConfig, layer_idx: int):
        super().__init__()
        model, experts = config.model, config.model["experts"]
        self.config, self.layer_idx, self.is_causal = config, layer_idx, True
        self.num_key_value_groups = model["heads"] // model["kv_heads"]
        self.scaling = model.get("attention_scale") or config.head_dim**-0.5
        self.rotary_widths = config.rotary_widths
        self.attention_norm = PerModality(experts["norms"], lambda: self._norm(model))
        self.qkv = PerModality(experts["qkv"], lambda: QKV(config))
        heads = model["heads"] * config.value_dim
        self.out = PerModality(experts["out"], lambda: nn.Linear(heads, model["width"], bias=model["bias"] == "all"))
        self.ffn_norm = PerModality(experts["norms"], lambda: self._norm(model))
        is_moe = experts["ffn"] == "moe"
        self.ffn = MoEFFN(config) if is_moe else PerModality(experts["ffn"], lambda: FFN(config))

    @staticmethod
    def _norm(model: dict[str, Any]) -> nn.Module:
        return make_norm(model["norm"], model["width"], model["norm_eps"])

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        rotary: tuple[Tensor, Tensor],
        routing: Routing | None,
        *,
        cache: Cache | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        batch, tokens, width = hidden_states.shape
        x = hidden_states.reshape(-1, width)
        q, k, v = (
            each.unflatten(0, (batch, tokens)).transpose(1, 2)
            for each in self.qkv(self.attention_norm(x, routing), routing)
        )
        q, k = rotate(q, *rotary, self.rotary_widths), rotate(k, *rotary, self.rotary_widths)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        name, value_dim = self.config._attn_implementation, v.shape[-1]
        attend = eager_attention if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
        if name not in ("eager", "sdpa"):  # other kernels need values as wide as keys
            v = F.pad(v, (0, k.shape[-1] - value_dim))
        heads, weights = attend(self, q, k, v, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs)
        heads = heads[..., :value_dim]
        x = x + self.out(heads.reshape(batch * tokens, -1), routing)
        x = x + self.ffn(self.ffn_norm(x, routing), routing)
        return x.view(batch, tokens, width), weights


__all__ = ["EMBEDDERS", "ConvEmbed", "GridEmbed", "MoE", "Routing", "SoloMonolithLayer", "make_norm"]
