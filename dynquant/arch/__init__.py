"""Models: a page of declarations for each family, and the GGUF keys and tensors made from it."""
