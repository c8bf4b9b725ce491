"""Releases in one repository on the Hub: what it has, what changes, and one card for all files."""
