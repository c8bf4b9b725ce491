"""What a model's activations say of its weights: the imatrix file, and its fit to a model."""
