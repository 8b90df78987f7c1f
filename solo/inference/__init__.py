"""A trained model that can be asked: the public Python API, prompts, decoding, sessions."""
