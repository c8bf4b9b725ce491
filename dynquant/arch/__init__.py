"""What a model is: a page of declarations for each family, and the keys and tensors they give."""
