"""Torch for checks where it is not installed: everything is Any."""

from typing import Any

def __getattr__(name: str) -> Any: ...
