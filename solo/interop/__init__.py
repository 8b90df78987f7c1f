"""Import from and export to Hugging Face repositories, with one module for each layout of tensors."""
