"""Write a checkpoint of full size whose weights are holes in its files, which take no disk space.

    python scripts/models/make_sparse_checkpoint.py CONFIG FOLDER [--shards N]
    python scripts/models/make_sparse_checkpoint.py DeepSeek-R1 FOLDER

CONFIG is a config.json of any family that dynquant supports, or the name of a published model
(tests/support/published_configs.py). Names, dtypes, shapes and offsets are those of the published
checkpoint. DeepSeek-R1 has 91,991 tensors of 688.6 GB in 163 files; headers and index take 21 MB
on disk. There is no tokenizer: `dynquant plan` does not need it, but `dynquant convert` does.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
from published_configs import MODELS, SHARDS
from sparse import header_of, n_bytes, write_sparse

SHARD_BYTES = 5_000_000_000
"""The default size of a shard in transformers."""


def config_of(text: str) -> dict[str, Any]:
    """Return the configuration of a published model, or read it from a file."""
    if text in MODELS:
        return MODELS[text]
    path = Path(text)
    if not path.is_file():
        raise SystemExit(f"error: {text} is neither a file nor one of {', '.join(MODELS)}")
    return json.loads(path.read_text("utf-8"))


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", help="a config.json, or one of " + ", ".join(MODELS))
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--shards", type=int, help="number of files; default as published, else of 5 GB"
    )
    given = parser.parse_args()
    config = config_of(given.config)
    try:
        tensors = header_of(config)
    except ValueError as e:
        raise SystemExit(f"error: {given.config}: {e}") from None
    total = sum(n_bytes(*tensor) for tensor in tensors.values())
    n_shards = given.shards or SHARDS.get(given.config) or -(-total // SHARD_BYTES)
    given.folder.mkdir(parents=True, exist_ok=True)
    write_sparse(given.folder, config, tensors, n_shards)
    files = list(given.folder.iterdir())
    on_disk = 512 * sum(path.stat().st_blocks for path in files)
    n_files = sum(path.suffix == ".safetensors" for path in files)
    print(
        f"{given.folder}: {len(tensors):,} tensors of {total:,} bytes in {n_files} files;"
        f" {on_disk / 1e6:.1f} MB on disk"
    )


if __name__ == "__main__":
    main()
