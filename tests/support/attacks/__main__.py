"""Print the table of attacks in tests/HOSTILE.md."""

import sys

from attacks import table

sys.stdout.write(table() + "\n")
