"""Files that are made to harm their reader, one function each; `python -m attacks` lists them.

A function writes the files into a folder. Its name is the name of the attack, its docstring
describes the input, and its decorator states the outcome, which tests/security/test_hostile.py
checks.
"""

from attacks import on_checkpoints, on_configs, on_tokenizers, on_words
from attacks.making import ATTACKS, Attack, table

READERS = (on_checkpoints, on_configs, on_tokenizers, on_words)
"""Modules in the order of the table; each adds its attacks to ATTACKS."""

__all__ = ["ATTACKS", "READERS", "Attack", "table"]
