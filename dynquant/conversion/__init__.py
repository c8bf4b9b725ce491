"""Writes a plan's files: encoded by threads, resumable, hashed, checked, then renamed."""
