"""Print the table of tests/HOSTILE.md."""

import sys

from attacks import table

sys.stdout.write(table() + "\n")
