"""Files that are made to harm who reads them, one function each; `python -m attacks` lists them.

A function puts the files into a folder. Its name is the attack's, its docstring says what is fed,
and what is said to come of it is what tests/test_hostile.py finds.
"""

from attacks import on_checkpoints, on_configs, on_tokenizers, on_words
from attacks.making import ATTACKS, Attack, table

READERS = (on_checkpoints, on_configs, on_tokenizers, on_words)
"""Imported in the order of the table; each adds to ATTACKS what it makes."""

__all__ = ["ATTACKS", "READERS", "Attack", "table"]
