"""A ladder: many outputs of one model from one pass over its weights.

A row is read once. It is encoded once for all outputs in which its tensor has the same type,
importance and effort. Each output has separate `.part` files, a journal, hashes and a manifest, and
the bytes that a separate conversion gives it.
"""
