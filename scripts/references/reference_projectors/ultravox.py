"""Ultravox, whose class is not in transformers: Whisper's encoder and a Llama of transformers.

The projector follows the published description: frames are stacked, normed, widened, gated (the
second half is the gate), normed, and narrowed to the language model. llama.cpp leaves out the last
frames of a window that do not make up a token, and so does this model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from reference_tokenizers import make_llama3_bpe, write_json
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from reference_projectors import Case, Inputs, Media, sound, with_marks
from reference_projectors.audio import N_MELS, TEXT, extractor, mel

_WIDE, _STACKED, _AUDIO = 52, 8, 449


class _Projector(nn.Module):
    def __init__(self, n_in: int, n_text: int) -> None:
        super().__init__()
        self.ln_pre = LlamaRMSNorm(n_in, eps=1e-6)
        self.linear_1 = nn.Linear(n_in, _WIDE, bias=False)
        self.ln_mid = LlamaRMSNorm(_WIDE // 2, eps=1e-6)
        self.linear_2 = nn.Linear(_WIDE // 2, n_text, bias=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        whole = frames[:, : frames.shape[1] // _STACKED * _STACKED]
        stacked = whole.reshape(len(whole), -1, _STACKED * whole.shape[-1])
        values, gate = self.linear_1(self.ln_pre(stacked)).chunk(2, dim=-1)
        return self.linear_2(self.ln_mid(nn.functional.silu(gate) * values))


class _Model(nn.Module):
    """The parts, with the names of published checkpoints."""

    def __init__(self, audio: Any, text: Any) -> None:
        super().__init__()
        self.audio_tower = WhisperEncoder._from_config(audio, attn_implementation="eager")
        self.multi_modal_projector = _Projector(_STACKED * audio.d_model, text.hidden_size)
        self.language_model = transformers.AutoModelForCausalLM.from_config(
            text, attn_implementation="eager"
        )

    def embed(self, input_features: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of a window, float32 [n_tokens, width]."""
        return self.multi_modal_projector(self.audio_tower(input_features).last_hidden_state)[0]

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, input_features: torch.Tensor
    ) -> CausalLMOutputWithPast:
        """Return the language model's results for a prompt with a sound."""
        embedded = self.language_model.get_input_embeddings()(input_ids)
        embedded[input_ids == _AUDIO] = self.embed(input_features)
        return self.language_model(inputs_embeds=embedded, attention_mask=attention_mask)


@dataclass(frozen=True)
class _Ultravox:
    audio: transformers.WhisperConfig
    text: transformers.LlamaConfig

    def make(self) -> Any:
        """Return the model with arbitrary weights."""
        return _Model(self.audio, self.text)

    def save(self, model: Any, folder: Path) -> None:
        """Write config.json and the weights in the form of published checkpoints."""
        stored = {name: t.contiguous() for name, t in model.state_dict().items()}
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        settings = {
            "architectures": ["UltravoxModel"],
            "model_type": "ultravox",
            "audio_config": self.audio.to_diff_dict(),
            "audio_model_id": None,
            "text_config": {"architectures": ["LlamaForCausalLM"], **self.text.to_diff_dict()},
            "text_model_id": None,
            "hidden_size": _WIDE,
            "ignore_index": -100,
            "norm_init": 0.4,
            "projector_act": "swiglu",
            "projector_ln_mid": True,
            "stack_factor": _STACKED,
            "torch_dtype": "bfloat16",
            "vocab_size": self.text.vocab_size,
        }
        write_json(folder / "config.json", settings)

    def load(self, folder: Path) -> Any:
        """Return the model with the weights of a folder, in float32."""
        model = self.make().float()
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model


def _inputs(folder: Path, one: Media) -> Inputs:
    return {"input_features": mel(folder, one)}


CASES = {
    "ultravox": Case(
        model=_Ultravox(
            transformers.WhisperConfig(
                d_model=20,
                encoder_ffn_dim=48,
                encoder_layers=3,
                encoder_attention_heads=2,
                num_mel_bins=N_MELS,
            ),
            transformers.LlamaConfig(**TEXT, head_dim=8, bos_token_id=442, eos_token_id=447),
        ),
        tokenizer=with_marks(make_llama3_bpe, "<|audio|>", "<|other|>"),
        processor=extractor(),
        media=(sound(1.234, 1), sound(2.05, 2)),
        inputs=_inputs,
        features=lambda model, inputs: [model.embed(**inputs)],
        in_prompt="<|other|>",
        placeholders=(_AUDIO,),
        weights=0.4,
    ),
}
