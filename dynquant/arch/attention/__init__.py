"""Kinds of attention: rows, dimensions and keys of each, and what llama.cpp computes of it."""
