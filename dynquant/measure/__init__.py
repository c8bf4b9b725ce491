"""Samples of a model's rows, and what encoding them gives."""
