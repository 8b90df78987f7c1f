"""What is known of accelerators, by the name that jax gives their devices."""

from __future__ import annotations

# Dense bfloat16 matrix FLOPs per second of one jax device, from the vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 FLOPs per second of one device, or None where it is not known (as for every CPU)."""
    return PEAK_FLOPS.get(device_kind)
