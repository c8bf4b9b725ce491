"""A conversion in parts: on any machines, in any order, joined into the file that one would write.

share.py   which rows belong to which part
files.py   where a part writes: into the shared file, or a file that is its alone
run.py     writes a part
join.py    brings the parts together
"""
