"""Mixtures of experts: rows, routing, the forms in which they are stored."""
