"""Tensors of an earlier output that a conversion copies, because encoding gives the same bytes."""
