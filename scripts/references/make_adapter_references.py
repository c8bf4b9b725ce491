"""Make tests/references/adapters: LoRA adapters of tiny checkpoints, and what PEFT makes of them.

    pip install '.[references]' peft
    python scripts/references/make_adapter_references.py [FAMILY ...]

For each family, tests/references/adapters/<family>/ is an adapter as PEFT saves it, for the
checkpoint tests/references/<family>. Files next to it:

    <family>.npy          float32 [n_prompts, vocab_size]: log-probabilities of the next token after
                          the prompts of tests/references/<family>.json, from the model in float32
                          after `merge_and_unload`
    <family>.safetensors  of some families: changed tensors after `merge_and_unload`, in float32 and
                          (`bf16.NAME`, the bits as uint16) merged in bfloat16, by their names

The factors are random and large, so that any fault shows in the log-probabilities. In transformers
5 the experts of a mixture are no modules, so PEFT cannot adapt them one by one as it did with
transformers 4; that part of qwen3moe is added here, by torch.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import (
    load_file,  # pyright: ignore[reportUnknownVariableType]
    save_file,  # pyright: ignore[reportUnknownVariableType]
)

REFERENCES = Path(__file__).resolve().parents[2] / "tests" / "references"
peft: Any = importlib.import_module("peft")  # it has no types
ADAPTERS = REFERENCES / "adapters"


@dataclass(frozen=True)
class Case:
    """An adapter to make.

    targets:  as `target_modules` of LoraConfig
    settings: more of its settings
    tensors:  a part of the names of the changed tensors that are stored; none if empty
    experts:  experts of each layer that have a separate adapter
    """

    targets: list[str] | str
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    tensors: str = ""
    experts: tuple[int, ...] = ()


LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

CASES = {
    "llama-2": Case(
        [*LLAMA, "embed_tokens", "lm_head"],
        {"r": 4, "lora_alpha": 6, "rank_pattern": {"down_proj": 2}},
        tensors="layers.0.",
    ),
    "qwen3": Case(
        LLAMA,
        {
            "r": 3,
            "lora_alpha": 2,
            "use_rslora": True,
            "rank_pattern": {"v_proj": 5},
            "alpha_pattern": {"layers.0.self_attn.o_proj": 7},
        },
    ),
    "gemma": Case(LLAMA, {"r": 4, "lora_alpha": 4}),
    "gpt2": Case(["c_attn", "c_proj", "c_fc"], {"r": 2, "lora_alpha": 4, "fan_in_fan_out": True}),
    "gptneox": Case(["query_key_value", "dense", "dense_4h_to_h"], {"r": 3, "lora_alpha": 3}),
    "phi3": Case(["qkv_proj", "gate_up_proj", "o_proj"], {"r": 4, "lora_alpha": 8}),
    "qwen3moe": Case(["q_proj", "k_proj"], {"r": 2, "lora_alpha": 3}, experts=(1, 3)),
    "mistral3": Case(
        r".*language_model.*\.(q_proj|k_proj|v_proj|up_proj)", {"r": 2, "lora_alpha": 4}
    ),
}


def load(family: str, dtype: torch.dtype) -> Any:
    """Load a family's checkpoint."""
    config = transformers.AutoConfig.from_pretrained(REFERENCES / family)
    kind = (
        transformers.AutoModelForImageTextToText
        if hasattr(config, "vision_config")
        else transformers.AutoModelForCausalLM
    )
    return kind.from_pretrained(
        REFERENCES / family, dtype=dtype, attn_implementation="eager"
    ).eval()


def randomize(model: Any, seed: int) -> None:
    """Set the factors to numbers that change the log-probabilities clearly."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                noise = rng.standard_normal(parameter.shape, dtype=np.float32)
                parameter.copy_(torch.from_numpy(noise * (0.3 if "_A" in name else 0.2)))


def add_experts(folder: Path, case: Case, model: Any, seed: int) -> None:
    """Add adapters of single experts to a saved adapter, and to the weights of a model."""
    rng = np.random.default_rng(seed)
    rank, scale = case.settings["r"], case.settings["lora_alpha"] / case.settings["r"]
    stored = load_file(folder / "adapter_model.safetensors")
    for number, layer in enumerate(model.model.layers):
        experts = getattr(layer.mlp, "experts", None)
        if experts is None:
            continue
        half = experts.gate_up_proj.shape[1] // 2
        for expert in case.experts:
            for projection in ("gate_proj", "up_proj", "down_proj"):
                weight = {
                    "gate_proj": experts.gate_up_proj.data[expert, :half],
                    "up_proj": experts.gate_up_proj.data[expert, half:],
                    "down_proj": experts.down_proj.data[expert],
                }[projection]
                n_out, n_in = weight.shape
                a = torch.from_numpy(0.3 * rng.standard_normal((rank, n_in), np.float32))
                b = torch.from_numpy(0.2 * rng.standard_normal((n_out, rank), np.float32))
                weight += scale * (b @ a)
                name = f"base_model.model.model.layers.{number}.mlp.experts.{expert}.{projection}"
                stored |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    save_file(stored, folder / "adapter_model.safetensors", {"format": "pt"})


def answers(model: Any, prompts: list[list[int]]) -> np.ndarray:
    """Return the log-probabilities of the next token after each prompt."""
    with torch.no_grad():
        logits = [model(torch.tensor([p])).logits[0, -1].float() for p in prompts]
    return torch.log_softmax(torch.stack(logits), -1).numpy()


def make(family: str, case: Case) -> None:
    """Make an adapter and the answers of its merged model."""
    folder, seed = ADAPTERS / family, zlib.crc32(family.encode())
    shutil.rmtree(folder, ignore_errors=True)
    prompts = json.loads((REFERENCES / f"{family}.json").read_text("utf-8"))["prompts"]
    settings = {"target_modules": case.targets, **case.settings}
    adapted = peft.get_peft_model(load(family, torch.float32), peft.LoraConfig(**settings))
    randomize(adapted, seed)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    changed = {
        name.removeprefix("base_model.model.").removesuffix(".base_layer.weight") + ".weight"
        for name, _ in adapted.named_parameters()
        if name.endswith(".base_layer.weight") and case.tensors in name
    }
    model = adapted.merge_and_unload()
    if case.experts:
        add_experts(folder, case, model, seed)
    np.save(ADAPTERS / f"{family}.npy", answers(model, prompts))
    (folder / "README.md").unlink(missing_ok=True)
    clean(folder / "adapter_config.json", family)
    if case.tensors:
        tensors = {n: t for n, t in model.state_dict().items() if n in changed}
        halved = peft.PeftModel.from_pretrained(load(family, torch.bfloat16), folder)
        in_half = halved.merge_and_unload().state_dict()
        tensors |= {f"bf16.{n}": in_half[n].view(torch.uint16) for n in sorted(changed)}
        save_file(
            {n: t.contiguous() for n, t in tensors.items()}, ADAPTERS / f"{family}.safetensors"
        )


def clean(path: Path, family: str) -> None:
    """Replace the base's path, which is one of this machine, by its name."""
    config = json.loads(path.read_text("utf-8"))
    config["base_model_name_or_path"] = f"tests/references/{family}"
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()  # PEFT has a set
    path.write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")


def main() -> None:
    """Make the adapters of the families named, or of all."""
    ADAPTERS.mkdir(exist_ok=True)
    for family in sys.argv[1:] or CASES:
        make(family, CASES[family])
        size = sum(f.stat().st_size for f in ADAPTERS.glob(f"{family}*/*"))
        size += sum(f.stat().st_size for f in ADAPTERS.glob(f"{family}.*"))
        print(f"{family}: {size:,} bytes")


if __name__ == "__main__":
    main()
