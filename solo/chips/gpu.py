"""NVIDIA GPUs.

Sources: NVIDIA's data sheets of H100 SXM, H200 SXM and A100 SXM, and CUDA's table of compute capabilities (9.0).

Compiler options: every option is accepted by XLA's GPU compiler of jaxlib 0.10.2 (tests/sharding/test_flags.py). They
come and go with XLA's versions; 0.11 has no pipelined collectives. An option that the installed XLA does not know is
left out, with a warning.

The attention tile was measured on an H100 with jax 0.11.2 on 2026-11-26, in bfloat16, with heads of 128, counting
visible pairs. Two rows of 8,192 causal slots with 32 heads: 369 TFLOP/s forward and 349 backward (cuDNN: 622 and 472;
tiles of 128 x 64: 345 and 310). Two rows of 4,096 with documents of 1,024 and 16 heads: 212 and 201 (tiles of 128 x 64
at their best: 212 and 166). Of the tiles that were visited these are 352 and 217, so `attention_share` is 389 TFLOP/s
of visited tiles, with 6.7 tiles more for every block of queries (`solo.planning.gpu_time`).
"""

from __future__ import annotations

from solo.chips.chip import Chip, Option, Price

_RENTED = "median of cloud prices on demand, distributed-training-book, foundations/05"

_OPTIONS = (
    Option(
        "xla_gpu_enable_latency_hiding_scheduler",
        True,
        "starts collectives as early and awaits them as late as their data allow; off by default",
    ),
    Option(
        "xla_gpu_all_gather_combine_threshold_bytes",
        1 << 30,
        "one gather for all weights of a layer: small ones are bound by latency (NVIDIA's JAX-Toolbox uses 1 GiB)",
    ),
    Option(
        "xla_gpu_reduce_scatter_combine_threshold_bytes",
        1 << 27,
        "the same for gradients; smaller, since a combined scatter waits for its last gradient (JAX-Toolbox: 128 MiB)",
    ),
    Option("xla_gpu_all_reduce_combine_threshold_bytes", 1 << 30, "the same for gradients over data and replica"),
    Option("xla_gpu_enable_pipelined_all_gather", True, "gathers a layer's weights in the scan's previous iteration"),
    Option("xla_gpu_enable_pipelined_reduce_scatter", True, "scatters its gradients in the scan's next iteration"),
    Option(
        "xla_gpu_enable_while_loop_double_buffering",
        True,
        "unrolls the scan's body twice, without which a pipelined collective copies the values it carries over",
    ),
)

# Hopper SXM5: 132 multiprocessors.
_HOPPER = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "shared_memory_per_core": 233472,
    "threads_per_core_limit": 2048,
    "core_count": 132,
    "fpus_per_core": 128,
    "block_dim_limit_x": 2147483647,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "l2_cache_size": 52428800,
    "clock_rate_ghz": 1.98,
    "shared_memory_per_block_optin": 232448,
    "cuda_compute_capability": {"major": 9, "minor": 0},
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
}

GPUS = (
    Chip(
        "h100",
        "cuda",
        ("NVIDIA H100 80GB HBM3",),
        peak_flops=989e12,
        memory=80 * 10**9,
        memory_bandwidth=3350e9,
        link_bandwidth=450e9,
        links=1,
        network_bandwidth=50e9,
        attention_tile=(64, 64),
        attention_share=0.393,
        quantized_products=("fp8", "int8"),
        compiler_options=_OPTIONS,
        price=Price(4.50, "2026-02", _RENTED),
        chips_per_host=8,
        gpu_target=_HOPPER,
        gke_accelerator="nvidia-h100-80gb",
    ),
    Chip(
        "h200",
        "cuda",
        ("NVIDIA H200",),
        peak_flops=989e12,
        memory=141 * 10**9,
        memory_bandwidth=4800e9,
        link_bandwidth=450e9,
        links=1,
        network_bandwidth=50e9,
        attention_tile=(64, 64),
        attention_share=0.393,
        quantized_products=("fp8", "int8"),
        compiler_options=_OPTIONS,
        price=Price(6.00, "2026-02", _RENTED),
        chips_per_host=8,
        gpu_target=_HOPPER,
        gke_accelerator="nvidia-h200-141gb",
    ),
    Chip(
        "a100",
        "cuda",
        ("NVIDIA A100-SXM4-80GB",),
        peak_flops=312e12,
        memory=80 * 10**9,
        memory_bandwidth=2039e9,
        link_bandwidth=300e9,
        links=1,
        network_bandwidth=25e9,
        quantized_products=("int8",),
        compiler_options=_OPTIONS,
        chips_per_host=8,
        gke_accelerator="nvidia-a100-80gb",
    ),
    Chip(
        "a100-40gb",
        "cuda",
        ("NVIDIA A100-SXM4-40GB",),
        peak_flops=312e12,
        memory=40 * 10**9,
        memory_bandwidth=1555e9,
        link_bandwidth=300e9,
        links=1,
        network_bandwidth=25e9,
        quantized_products=("int8",),
        compiler_options=_OPTIONS,
        chips_per_host=8,
        gke_accelerator="nvidia-tesla-a100",
    ),
)
