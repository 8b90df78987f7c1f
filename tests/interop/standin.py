"""The parameters of a model from its config alone: what `ModelDefinition.specs` says of a model with every switch."""

from dataclasses import dataclass

from solo.config import ImageConfig, ModelConfig
from solo.model.parameters import ParameterSpec


@dataclass(frozen=True)
class StandIn:
    config: ModelConfig
    image: ImageConfig
    vocab_size: int

    @property
    def specs(self) -> dict[str, ParameterSpec]:
        c = self.config
        rows = -(-self.vocab_size // c.vocab_multiple) * c.vocab_multiple
        found = {"text_embed": ((rows, c.width), ("vocab", "embed"))}
        if not c.tied_head:
            found["head"] = ((c.width, rows), ("embed", "vocab"))
        found |= _norm("final_norm", c.norm, c.width)
        found |= {f"patch_embed/{path}": value for path, value in self._patch_embed().items()}
        for path, (shape, axes) in self._layer().items():
            found[f"layers/{path}"] = ((c.layers, *shape), ("layers", *axes))
        return {path: ParameterSpec(*value) for path, value in sorted(found.items())}

    def _patch_embed(self):
        e, p, width = self.config.patch_embed, self.image.patch_size, self.config.width

        def dense(name, inputs, outputs, bias=True):
            axes = ("embed",) if outputs == width else ("norm",)
            found = {f"{name}kernel": ((inputs, outputs), ("pixels", *axes))}
            return found | ({f"{name}bias": ((outputs,), axes)} if bias else {})

        if e.kind == "linear":
            return dense("", 3 * p * p, width, e.bias)
        inner, channels, n = e.inner_size, e.inner_width, p // e.inner_size
        found = dense("inner/", 3 * inner * inner, channels)
        if e.kind == "conv":
            if self.image.markers:
                found |= {name: ((width,), ("norm",)) for name in ("begin_marker", "row_marker")}
            return found | dense("merge/", n * n * channels, width)
        found["positions"] = ((e.grid_side**2 + e.class_slot, channels), ("pixels", "norm"))
        if e.class_slot:
            found["class_token"] = ((channels,), ("norm",))
        found |= _norm("norm", "layer", n * n * channels)
        return found | dense("hidden/", n * n * channels, width) | dense("out/", width, width)

    def _layer(self):
        c = self.config
        D, H, K, C, F = c.width, c.heads, c.kv_heads, c.dim_per_head, c.ffn_width
        found = {}
        for r in _regions(c.experts.norms):
            found |= _norm(f"attention_norm/{r}", c.norm, D) | _norm(f"ffn_norm/{r}", c.norm, D)
        for r in _regions(c.experts.qkv):
            for name, heads, axis in (("q", H, "heads"), ("k", K, "kv_heads"), ("v", K, "kv_heads")):
                found[f"qkv/{r}/{name}"] = ((D, heads, C), ("embed", axis, "head_dim"))
                if c.bias != "none":
                    found[f"qkv/{r}/{name}_bias"] = ((heads, C), (axis, "head_dim"))
            if c.qk_norm != "none":
                found |= _norm(f"qkv/{r}/q_norm", c.qk_norm, C) | _norm(f"qkv/{r}/k_norm", c.qk_norm, C)
        for r in _regions(c.experts.out):
            found[f"out/{r}/kernel"] = ((H, C, D), ("heads", "head_dim", "embed"))
            if c.bias == "all":
                found[f"out/{r}/bias"] = ((D,), ("embed",))
        names = ("gate", "up", "down") if c.ffn == "swiglu" else ("up", "down")
        if c.experts.ffn == "learned":
            E, F = c.learned_experts.count, c.learned_experts.width or F // c.learned_experts.top_k
            found["ffn/learned/router"] = ((D, E), ("embed", "experts"))
            for name in names:
                shape = ("experts", "ffn", "embed") if name == "down" else ("experts", "embed", "ffn")
                found[f"ffn/learned/{name}"] = (tuple({"experts": E, "ffn": F, "embed": D}[a] for a in shape), shape)
            return found
        for r in _regions(c.experts.ffn):
            for name in names:
                shape = ("ffn", "embed") if name == "down" else ("embed", "ffn")
                found[f"ffn/{r}/{name}"] = (tuple({"ffn": F, "embed": D}[a] for a in shape), shape)
                if c.bias == "all":
                    found[f"ffn/{r}/{name}_bias"] = (({"ffn": F, "embed": D}[shape[1]],), (shape[1],))
        return found


def _regions(sharing):
    return ("shared",) if sharing == "shared" else ("patches", "text")


def _norm(path, kind, width):
    names = ("scale",) if kind == "rms" else ("scale", "bias")
    return {f"{path}/{name}": ((width,), ("norm",)) for name in names}
