"""Which types a file of a given size should have."""
