"""Files that are read without being downloaded: by requests for ranges of their bytes.

remote_file.py      a file elsewhere, as `StoredFile`: read by ranges, or from a temporary copy
hub_ranges.py       requests to the Hugging Face Hub
fsspec_ranges.py    requests by fsspec: s3://, gs:// and others
hub_models.py       models on the Hub
fsspec_models.py    models at other URLs
open_gguf.py        the header of a GGUF at either

What is checked: size, ETag and commit at every request, and the header as that of any file. The
hash of the whole content can only be compared where the whole file is read.
"""
