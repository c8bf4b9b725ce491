"""From a plan to its files: encoded by many threads, resumed, hashed, described, then named."""
