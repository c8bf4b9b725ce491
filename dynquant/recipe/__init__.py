"""The recipe language, and which rule of a recipe applies to each tensor of a model."""
