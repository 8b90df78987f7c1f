"""libtpu options that others recommend for training, in the order in which `solo plan --search-options` tries them.

Sources, read in November 2026: MaxText's library of flags (benchmarks/xla_flags_library.py), its configs for v4 to v6e,
Google's recipes for Ironwood (tpu-recipes, training/ironwood), and Marin's defaults (fray/platform_env_defaults).
libtpu 0.0.42.1 accepts every option here on v5e, v5p, v6e and tpu7x. MaxText also lists `xla_sc_disjoint_spmem`, which
this version does not know.
"""

from __future__ import annotations

from solo.chips.chip import Trial

VECTOR_MEMORY = "xla_tpu_scoped_vmem_limit_kib"
_FLAGS = "MaxText's library of flags"


def vector_memory(*kib: int) -> tuple[Trial, ...]:
    """Returns trials of how much VMEM one operation may use. The rest holds data prefetched for later operations."""
    source = f"{_FLAGS} has 98,304 for v6e, Ironwood's recipes 65,536, Marin 50,000 for v5p: larger tiles of products"
    return tuple(Trial({VECTOR_MEMORY: size}, source) for size in kib)


GRADIENTS = (
    Trial(
        {
            "xla_enable_async_all_reduce": True,
            "xla_tpu_enable_async_collective_fusion": True,
            "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": True,
            "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
            "xla_tpu_overlap_compute_collective_tc": True,
        },
        f"{_FLAGS}, for all-reduces: sums of gradients in steps fused into products",
    ),
    Trial(
        {
            "xla_tpu_use_minor_sharding_for_major_trivial_input": True,
            "xla_tpu_relayout_group_size_threshold_for_reduce_scatter": 1,
            "xla_tpu_assign_all_reduce_scatter_layout": True,
        },
        f"{_FLAGS}: a layout in which an all-reduce of which a device keeps a part becomes a reduce-scatter",
    ),
)
SPARSE_CORES = (
    Trial(
        {
            "xla_tpu_enable_async_collective_fusion_fuse_all_reduce": False,
            "xla_tpu_enable_sparse_core_collective_offload_all_reduce": True,
            "xla_tpu_enable_all_reduce_offload_tracing": True,
            "xla_tpu_use_tc_device_shape_on_sc": True,
            "xla_sc_enable_instruction_fusion": False,
            "xla_sc_disable_megacore_partitioning": True,
        },
        f"{_FLAGS}: the SparseCores sum gradients while the TensorCore computes",
    ),
)
ARITHMETIC = (
    Trial({"xla_tpu_bf16_emission_mode": "NATIVE_EMISSION"}, "Ironwood's recipes: elementwise operations in bfloat16"),
)
PRODUCTS = (
    Trial(
        {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1_000_000},
        f"{_FLAGS}: products are not cut into steps that pass weights between chips",
    ),
    Trial(
        {"xla_tpu_use_bundle_aware_cost_model_for_fusions": False},
        f"{_FLAGS}: another model of costs for fusions, which some backward passes need",
    ),
)
SLICES = (
    Trial(
        {
            "xla_tpu_enable_data_parallel_all_reduce_opt": True,
            "xla_tpu_data_parallel_opt_different_sized_ops": True,
        },
        f"{_FLAGS}: sums of gradients between slices during the next layers' backward pass",
    ),
)
