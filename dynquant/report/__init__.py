"""Reports of plans and files: tables for terminals, JSON for scripts, pages for browsers."""
