"""Plug-in for vLLM 0.32: serves native exports of solo, routing every token by its modality.

pip install ./plugins/vllm
vllm serve REPOSITORY --trust-remote-code --enforce-eager
"""


def register() -> None:
    """Names the model to vLLM, which imports it when a repository asks for it."""
    from vllm import ModelRegistry

    ModelRegistry.register_model("SoloMonolithForCausalLM", "solo_vllm.model:SoloMonolithForCausalLM")
