"""TPUs.

Sources: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, November 2026. Topology names, bounds and usable memory
are those that libtpu 0.0.42 accepts and reports; vector memory is that of jax's own table of TPUs.

Compiler options: every option is accepted by libtpu 0.0.42 (tests/sharding/test_flags.py). The commonly used sets for
collectives are not listed for v5e, whose program they left unchanged, and for tpu7x, which moves its collectives to the
SparseCore by default.

Attention tiles were chosen on 2026-11-26 from the schedules of libtpu 0.0.42.1, in bfloat16, with heads of 128, four
query heads to a key head. The figure is the FLOPs of a tile's products over its instruction bundles, as a share of
peak, of tiles with and without a mask. Bundles exclude waiting, for memory and for running products, so the share can
exceed 1.

          tile         forward      backward     splash attention, measured alike
  v5e     256 x 256    76 to 84%    109 to 111%  forward 46 to 51% (blocks of 512; 1,024), backward 104%
  v6e     256 x 256    26 to 29%    45 to 48%    forward 27%, backward 40% (blocks of 512)

With every product occupying its unit for the cycles that its size needs, v5e reaches 66 to 70% forward and 89 to 90%
backward. Heads of 128 fill half of a matrix unit of v6e. Larger tiles contain more masked pairs: on rows of 4,096 slots
with documents of about 1,000, three quarters of them patches, tiles of 512 x 512 compute 3.8 times the visible pairs,
and tiles of 256 x 256 compute 2.3 times.

Attention shares follow from the same schedules: v5e 55% forward and 75% backward, v6e 22 and 42%, after a sixth is
deducted for what a schedule excludes, mainly waiting for memory. They were not measured on a device.
"""

from __future__ import annotations

from solo.chips.chip import GIB, Chip, Option, Price
from solo.chips.trials import ARITHMETIC, GRADIENTS, PRODUCTS, SLICES, SPARSE_CORES, VECTOR_MEMORY, vector_memory

_SQUARES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
}
_LIST = "Google Cloud, list price on demand in the US; from memory, not looked up"
_TILE = (256, 256)
_LIKE_V5E = {"attention_share": "v5e's, which has the same matrix units"}

_FETCH_AHEAD = (
    Option(
        "xla_tpu_enable_async_collective_fusion",
        True,
        "gathers the weights of the next products during the present ones, in steps fused into them. For a 7B model"
        " on v5p-128, fsdp 64, 27.4 of 28.2 GB of all-gathers per step no longer stop the computation, with 1.4 GB less"
        " of temporaries (estimated step 3.55 -> 3.50 s, compiled ahead of time)",
    ),
    Option("xla_tpu_enable_async_collective_fusion_fuse_all_gather", True, "the same, for all-gathers: FSDP's weights"),
    Option("xla_tpu_enable_async_collective_fusion_multiple_steps", True, "the same, over more than one product"),
    Option("xla_tpu_overlap_compute_collective_tc", True, "the same, for collectives that the TensorCore issues"),
    Option("xla_enable_async_all_gather", True, "the fusion needs asynchronous all-gathers"),
)
_GATHER_IN_THREE_DIMENSIONS = (
    Option(
        "xla_tpu_prefer_async_allgather_to_allreduce",
        True,
        "on a closed 3-D torus libtpu writes an all-gather as an all-reduce of zeros, which sends twice as much and"
        " stops the computation; with this option and those above it stays an asynchronous all-gather",
    ),
)


def _vector_memory(kib: int, figures: str) -> tuple[Option, ...]:
    reason = "larger tiles for products, beside the attention kernels' own limits. Compiling takes three times as long"
    return (Option(VECTOR_MEMORY, kib, f"{reason}. SOLO-7B, compiled ahead of time: {figures}"),)


TPUS = (
    Chip(
        "v2",
        "tpu",
        ("TPU v2",),
        devices=2,
        cores=2,
        peak_flops=46e12,
        memory=16 * GIB,
        vector_memory=16 * 2**20,
        memory_bandwidth=716e9,
    ),
    Chip(
        "v3",
        "tpu",
        ("TPU v3",),
        devices=2,
        cores=2,
        peak_flops=140e12,
        memory=32 * GIB,
        vector_memory=16 * 2**20,
        memory_bandwidth=825e9,
    ),
    Chip(
        "v4",
        "tpu",
        ("TPU v4",),
        cores=2,
        peak_flops=275e12,
        memory=32 * GIB,
        vector_memory=16 * 2**20,
        memory_bandwidth=1228e9,
        link_bandwidth=50e9,
        links=6,
        clock=1.05e9,
        attention_tile=_TILE,
        attention_share=0.68,
        assumed=_LIKE_V5E,
        price=Price(3.22, "2025-06", _LIST),
        sizes=_CUBES,
        trials=PRODUCTS + GRADIENTS,
        topology_prefix="v4",
        # Makes one device of the two cores; without it jax sees two devices per chip.
        topology_options={"chip_config_name": "megacore"},
        accelerator_type="v4",
        runtime_version="tpu-ubuntu2204-base",
        gke_accelerator="tpu-v4-podslice",
    ),
    Chip(
        "v5e",
        "tpu",
        ("TPU v5 lite", "TPU v5e"),
        peak_flops=197e12,
        memory=16 * GIB,
        usable_memory=int(15.75 * GIB),
        vector_memory=128 * 2**20,
        memory_bandwidth=819e9,
        link_bandwidth=50e9,
        links=4,
        network_bandwidth=6.4e12 / 8 / 256,
        clock=1.5e9,
        attention_tile=_TILE,
        attention_share=0.68,
        quantized_products=("int8",),
        compiler_options=_vector_memory(65536, "v5e-256, rows of 4,096: 1.801 -> 1.566 s; with 98,304 1.588 s"),
        price=Price(1.20, "2025-06", _LIST),
        sizes=_SQUARES,
        single_hosts={1: 1, 4: 4, 8: 8},
        trials=vector_memory(32768, 98304) + PRODUCTS + GRADIENTS + SLICES,
        topology_prefix="v5e",
        topology_options={"chip_config_name": "default"},
        accelerator_type="v5litepod",
        runtime_version="v2-alpha-tpuv5-lite",
        gke_accelerator="tpu-v5-lite-podslice",
    ),
    Chip(
        "v5p",
        "tpu",
        ("TPU v5", "TPU v5p"),
        cores=2,
        peak_flops=459e12,
        memory=95 * GIB,
        vector_memory=64 * 2**20,
        memory_bandwidth=2765e9,
        link_bandwidth=100e9,
        links=6,
        network_bandwidth=50e9 / 8,
        clock=1.75e9,
        attention_tile=_TILE,
        attention_share=0.68,
        quantized_products=("int8",),
        assumed=_LIKE_V5E,
        compiler_options=_FETCH_AHEAD
        + _GATHER_IN_THREE_DIMENSIONS
        + _vector_memory(49152, "v5p-128, 2 rows of 8,192, remat dots: 2.724 -> 2.146 s. Marin sets 50,000"),
        price=Price(4.20, "2025-06", _LIST),
        sizes={**_CUBES, 192: "4x4x12", 384: "4x8x12", 768: "8x8x12", 3072: "12x16x16", 6144: "16x16x24"},
        trials=vector_memory(32768, 57344) + PRODUCTS + GRADIENTS + SPARSE_CORES + SLICES,
        topology_prefix="v5p",
        topology_options={"chip_config_name": "default"},
        accelerator_type="v5p",
        runtime_version="v2-alpha-tpuv5",
        gke_accelerator="tpu-v5p-slice",
    ),
    Chip(
        "v6e",
        "tpu",
        ("TPU v6 lite", "TPU v6e"),
        peak_flops=918e12,
        memory=32 * GIB,
        vector_memory=128 * 2**20,
        memory_bandwidth=1638e9,
        link_bandwidth=100e9,
        links=4,
        network_bandwidth=100e9 / 8,
        clock=1.75e9,
        attention_tile=_TILE,
        attention_share=0.33,
        quantized_products=("int8",),
        compiler_options=_FETCH_AHEAD + _vector_memory(98304, "v6e-256, 2 rows of 8,192: 2.317 -> 1.799 s"),
        price=Price(2.70, "2025-06", _LIST),
        sizes=_SQUARES,
        single_hosts={1: 1, 4: 4, 8: 8},
        trials=vector_memory(49152, 65536) + PRODUCTS + ARITHMETIC + GRADIENTS + SPARSE_CORES + SLICES,
        topology_prefix="v6e",
        topology_options={"chip_config_name": "default"},
        accelerator_type="v6e",
        runtime_version="v2-alpha-tpuv6e",
        gke_accelerator="tpu-v6e-slice",
    ),
    Chip(
        "tpu7x",
        "tpu",
        ("TPU7x",),
        devices=2,
        cores=2,
        peak_flops=2307e12,
        memory=192 * GIB,
        vector_memory=64 * 2**20,
        memory_bandwidth=7380e9,
        link_bandwidth=100e9,
        links=6,
        network_bandwidth=100e9 / 8,
        clock=1.75e9,
        attention_share=0.33,
        quantized_products=("fp8",),
        assumed={
            "clock": "that of v5p and v6e; not published",
            "attention_share": "v6e's, which has the same matrix units",
        },
        sizes=_CUBES,
        trials=vector_memory(32768, 49152, 65536) + ARITHMETIC + PRODUCTS + SLICES,
        topology_prefix="tpu7x",
        topology_options={"chip_config_name": "default"},
        gke_accelerator="tpu7x",
        gke_placement_policy=True,
    ),
)
