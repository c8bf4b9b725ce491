"""Verify a GGUF: its structure, every block, its manifest, and its source."""
