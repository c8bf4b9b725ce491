"""Models in GGUF files: what llama.cpp needs of them."""
