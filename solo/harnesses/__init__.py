"""Plug-ins for evaluation harnesses that other people keep. Each module imports its harness, which solo does not need.

lmms        lmms-eval, found through the entry point `lmms_eval.models`
vlmevalkit  VLMEvalKit, registered by running its `run.py` through the module

docs/reach.md has the commands.
"""
