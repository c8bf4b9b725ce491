"""The tensors that llama.cpp's graph of an architecture requires, by the families' tensor tables.

A family describes a config.json. Here the keys of a GGUF become a config.json with the same layers,
and the family's own table gives the names. Sizes have no effect on names, so they are small and
constant. Where a graph differs from the table, the family's page says so, see graph.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.families import families, graphs
from dynquant.arch.gguf_files.graph import SMALL, FileKeys, Fused
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys

_SIZES: dict[str, Any] = {
    "vocab_size": SMALL,
    "hidden_size": SMALL,
    "intermediate_size": SMALL,
    "moe_intermediate_size": SMALL,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": SMALL,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "num_experts_per_tok": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "index_n_heads": 2,
    "index_head_dim": 64,
    "index_topk": 1,
    "sliding_window": 32,
}

_OPTIONAL = frozenset(
    {
        # Biases of Q, K and V are optional in the graphs of all families.
        *("attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_qkv.bias"),
        # A prediction layer without these uses the model's own.
        *("nextn.embed_tokens.weight", "nextn.shared_head_head.weight"),
        "nextn.shared_head_norm.weight",
    }
)
_ROPE_FACTORS = frozenset({"rope_factors_long.weight", "rope_factors_short.weight"})
"""LongRoPE: a model with the key of its magnitude has both sets of factors. llama.cpp loads it
without them, and then rotates by other angles."""


@dataclass(frozen=True)
class Graph:
    """The tensors that a graph requires.

    whole:  names outside the layers
    layers: of each layer, the names without `blk.N.`; prediction layers come last
    n_own:  the number of layers without prediction layers
    fused:  matrices that may be separate or one
    tied:   whether the embedding is the output matrix if there is no output.weight
    either: sets of names of which each layer needs one, besides those in `layers`
    """

    whole: frozenset[str]
    layers: tuple[frozenset[str], ...]
    n_own: int
    fused: tuple[Fused, ...]
    tied: bool
    either: tuple[frozenset[str], ...] = ()

    def absent(self, layer: int, names: frozenset[str]) -> frozenset[str]:
        """Return the required tensors of a layer that are not among its names."""
        absent = self.layers[layer] - names
        for parts, one in self.fused:
            for needed, other in ((parts, one), (one, parts)):
                if needed <= self.layers[layer] and other <= names:
                    absent -= needed
        if self.either:
            absent |= max(self.either, key=lambda one: len(one & names)) - names
        return absent


def knows(name: str) -> bool:
    """Return whether a family describes this architecture of a GGUF."""
    return name in graphs()


def graph_of(name: str, keys: Keys) -> Graph:
    """Return the tensors that the graph of an architecture requires, for a model with these keys.

    name: an architecture that `knows` knows
    Raises ArchitectureError if the keys describe no model of the family.
    """
    graph = graphs()[name]
    described = _described(name, keys)
    optional = _OPTIONAL.union(graph.optional, *graph.either)
    if graph.qkv_bias:
        optional -= {"attn_qkv.bias"}
    keys_only = optional | described.numbers | described.integers.keys()
    rows = [row for row in described.rows if not (row.optional or _in_layer(row) in keys_only)]
    if described.tied is not None:
        rows = [row for row in rows if row.stored != described.tied[0]]
    own = range(described.n_layers)
    ahead = described.prediction.layers if described.prediction else range(own.stop, own.stop)
    scales_rope = graph.longrope and f"{name}.rope.scaling.attn_factor" in keys
    return Graph(
        frozenset(row.name for row in rows if "{}" not in row.name)
        | (_ROPE_FACTORS if scales_rope else frozenset[str]())
        | {f"{d}.weight" for d in ("dense_2", "dense_3") if f"{name}.{d}_feat_out" in keys}
        | graph.computed,
        tuple(
            frozenset(_in_layer(row) for row in rows if _is_in(row, layer, own)) | graph.in_layers
            for layer in range(ahead.stop)
        ),
        own.stop,
        graph.fused,
        any(row.name == "output.weight" for row in described.rows) and described.tied is not None,
        graph.either,
    )


def own_layers(name: str, keys: Keys) -> tuple[int | None, int]:
    """Return the number of layers, and how many of them, the last, predict further ahead.

    The number is None if the keys do not state it.
    """
    of_file = FileKeys(name, keys, 0)
    count, ahead = of_file.number("block_count"), of_file.number("nextn_predict_layers") or 0
    return count, ahead if count is not None and 0 <= ahead < count else 0


def _in_layer(row: Row) -> str:
    return row.name.removeprefix("blk.{}.")


def _is_in(row: Row, layer: int, own: range) -> bool:
    return "{}" in row.name and layer in (own if row.layers is None else row.layers)


def _described(name: str, keys: Keys) -> Architecture:
    """Describe the model by its family, with tied embeddings if its graph permits them."""
    graph = graphs()[name]
    count, ahead = own_layers(name, keys)
    n_layers = (count or 0) - ahead
    of_file = FileKeys(name, keys, n_layers)
    experts = max(of_file.number("expert_count") or 0, 1)
    config = {
        **_SIZES,
        **(graph.settings or {}),
        "first_k_dense_replace": of_file.n_dense,
        "shared_intermediate_size": of_file.number("expert_shared_feed_forward_length") or 0,
        **(graph.layers(of_file) if graph.layers else {}),
        "num_hidden_layers": n_layers,
        "num_nextn_predict_layers": ahead,
        "num_experts": experts,
        "n_routed_experts": experts,
    }
    kind = graph.class_of(of_file) if graph.class_of else graph.of
    family, where = families()[kind], f"the keys of {name}"
    try:
        found = family({**config, "tie_word_embeddings": True}, where)
    except ArchitectureError:
        found = family({**config, "tie_word_embeddings": False}, where)
    is_split = f"{name}.attention.key_length_mla" in keys
    return found if is_split or found.merged is None else found.merged
