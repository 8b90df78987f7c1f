"""Weights in and out: repositories in the Hugging Face form, one module for each foreign layout of tensors."""
