"""Runs a checkpoint in transformers, layer by layer, and collects the inputs of its matrices."""
