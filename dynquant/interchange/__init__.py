"""Recipes from and to what others write: a GGUF's types, and lists of PATTERN=TYPE."""
