"""A ladder: many outputs of one model from one pass over its weights.

A row is read once. It is encoded once for all outputs in which its tensor has the same type,
importance and effort. Each output has its own `.part` files, journal, hashes and manifest, and the
same bytes as by a conversion of its own.
"""
