"""Show how many tensors the recipes of llama-quantize's mixes give the type that it gives.

    python scripts/checks/show_mixes.py [--models NAMES] [MIX ...]

A Markdown table: equal tensors of all, for each mix (all of tests/references/mixes.json unless
named) and model (a dense one and two mixtures unless named, `all` for all), without and with an
imatrix. `both refuse` stands where an imatrix is asked for, or no type divides the rows; the models
have all their matrices, and of their norms the first.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from mixes import our_types, peer_needs_imatrix, peer_types, reference

from dynquant.errors import RecipeError
from dynquant.recipe.loader import load_recipe
from dynquant.recipe.rules import Recipe

MODELS = "Llama-3.1-8B;Mixtral-8x7B;Qwen3-30B-A3B"


def main() -> None:
    """Print the table."""
    known = reference()["models"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=MODELS, help="names between semicolons, or all")
    parser.add_argument("mixes", nargs="*", metavar="MIX", default=[])
    given = parser.parse_args()
    models = list(known) if given.models == "all" else given.models.split(";")
    mixes = given.mixes or list(known[models[0]]["types"])
    ways = [(model, importance) for model in models for importance in (False, True)]
    heads = [f"{model}, {'imatrix' if importance else 'plain'}" for model, importance in ways]
    print(f"| mix | {' | '.join(heads)} |")
    print("|---|" + "---:|" * len(heads))
    for mix in mixes:
        recipe = load_recipe(mix)
        cells = [_cell(model, mix, recipe, importance) for model, importance in ways]
        print(f"| {mix} | {' | '.join(cells)} |", flush=True)


def _cell(model: str, mix: str, recipe: Recipe, importance: bool) -> str:
    theirs = peer_types(model, mix, importance=importance)
    they_refuse = isinstance(theirs, str) or (not importance and peer_needs_imatrix(model, mix))
    try:
        ours = our_types(model, recipe, importance=importance)
    except RecipeError:
        ours = None
    we_refuse = ours is None or (not importance and recipe.importance == "required")
    if we_refuse or they_refuse:
        return "both refuse" if we_refuse == they_refuse else "one refuses"
    assert ours is not None
    assert isinstance(theirs, dict)
    return f"{sum(ours[t] == theirs[t] for t in theirs)}/{len(theirs)}"


if __name__ == "__main__":
    main()
