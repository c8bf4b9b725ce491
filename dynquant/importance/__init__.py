"""The importance of weights, from a model's activations: imatrix files and their fit to a model."""
