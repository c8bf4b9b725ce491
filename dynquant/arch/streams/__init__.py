"""What a model has besides one stream of states: several of them, or embeddings for layers."""
