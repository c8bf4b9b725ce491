"""What a person reads of plans and files: tables in a terminal, pages in a browser."""
