"""Conversion between recipes and other formats: a GGUF's types, and lists of PATTERN=TYPE."""
