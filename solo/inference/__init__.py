"""Inference with a trained model: the public Python API, prompts, decoding, sessions."""
