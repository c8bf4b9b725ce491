"""Whether a GGUF is sound: its structure, every block, its manifest, and its source."""
