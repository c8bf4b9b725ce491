"""A recipe with every key of the language, to test the reader and the schema."""

EVERY_KEY = """\
dynquant: 1
name: whole
description: has every key
for: [llama, qwen3moe]
default: Q4_K
importance: {use: required, shrink: 12, unseen: uniform}
feedback: {use: required, damping: 0.125, sweeps: 0}
effort: best
rules:
  - role: [experts, attn_v]
    layers:
      - 0-3
      - 75%-100%
      - {every: 4, from: 12.5%+2, of: experts}
      - {in: [0-9], first: 3, last: 50%}
    name: "*.weight"
    shape: {row_multiple_of: 256, min_weights: 4096, dimensions: 3}
    when: {experts: [8, ">= 64"], gqa: "!= 1", layers: "< 99", tied_embeddings: false,
           importance: true, architecture: [llama, qwen3moe]}
    not: [{role: ffn_up_exps, layers: [2, {last: 1}]}, {name: "*.x", shape: {dimensions: 2}}]
    type: Q6_K
    fallback: [Q5_1, F16]
    feedback: {use: auto, damping: 1, sweeps: 8}
    optional: true
    override: false
    note: so that there is one
  - {role: mtp, drop: true, optional: true}
  - {role: output, keep: true}
fallback: {IQ1_S: [IQ4_NL, F16], q6_k: Q8_0, IQ2_S: error, any: [Q8_0, F16]}
output: {shard_size: 50GB, tensor_order: layer}
metadata: {general.name: Whole, general.size_label: 7B}
prediction_layers: keep
readers: [llama.cpp, vLLM]
"""
