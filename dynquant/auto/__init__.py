"""From a model and a size to a measured file: the other commands, one after the other."""
