"""Plug-ins for third-party evaluation harnesses. Each module imports its harness, which is not a dependency of solo.

lmms        lmms-eval, found through the entry point `lmms_eval.models`
vlmevalkit  VLMEvalKit, registered by running its `run.py` through the module

docs/reach.md has the commands.
"""
