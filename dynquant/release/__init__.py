"""Publish a file: model card, checksums, recipe, page of the plan; summaries of CI jobs."""
