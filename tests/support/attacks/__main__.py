"""Print the table of attacks in docs/explanation/security.md."""

import sys

from attacks import table

sys.stdout.write(table() + "\n")
