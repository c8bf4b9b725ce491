"""Layers with a state: Mamba, short convolutions, and which layers of a model are such."""
