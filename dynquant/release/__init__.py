"""What a publisher uploads beside a file: card, checksums, recipe, plan; and gates before it."""
