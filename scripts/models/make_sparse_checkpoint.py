"""Write a checkpoint of a model's full size that takes no room: its weights are holes in its files.

    python scripts/models/make_sparse_checkpoint.py CONFIG FOLDER [--shards N]
    python scripts/models/make_sparse_checkpoint.py DeepSeek-R1 FOLDER

CONFIG is a config.json of any family that dynquant knows, or the name of a published model
(tests/published.py). Names, dtypes, shapes and places are those of the published checkpoint, for
DeepSeek-R1 91,991 tensors of 688.6 GB in 163 files; the disk holds headers and index, 21 MB.
There is no tokenizer: `dynquant plan` does without, `dynquant convert` refuses the folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
from published import MODELS, SHARDS
from sparse import header_of, n_bytes, write_sparse

SHARD_BYTES = 5_000_000_000
"""What transformers cuts checkpoints at."""


def config_of(text: str) -> dict[str, Any]:
    """Return the configuration of a published model, or of a file."""
    if text in MODELS:
        return MODELS[text]
    path = Path(text)
    if not path.is_file():
        raise SystemExit(f"error: {text} is no file and none of {', '.join(MODELS)}")
    return json.loads(path.read_text("utf-8"))


def main() -> None:
    """Read the command line and write the checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", help="a config.json, or one of " + ", ".join(MODELS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shards", type=int, help="files; as published, or of 5 GB at most")
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
