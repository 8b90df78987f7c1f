"""The flags with which tests, and the processes that they start, compile."""

# Tests mostly compile, and run what they compiled for a moment. Unoptimised code compiles twice as fast; XLA's older
# code generator for fused operations compiles four times as fast as its new one and computes the same.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
