"""Rotary positions: scalings, sections, and heads of which a part is rotated."""
