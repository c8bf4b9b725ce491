"""A conversion on a Dask cluster (extra `cluster`): workers write parts, this process joins them.

task.py   what a worker does: no weights travel, only numbers of parts
run.py    what the process does that asks for it
"""
