"""Larger models around language models of any family: the class is named by their own settings."""

from __future__ import annotations

from dynquant.arch.wrapped import Wrapped

_ANY = Wrapped()
FAMILIES = dict.fromkeys(
    (
        "AyaVisionForConditionalGeneration",
        "AudioFlamingo3ForConditionalGeneration",
        "Glm5vForConditionalGeneration",
        "GotOcr2ForConditionalGeneration",
        "GraniteSpeechForConditionalGeneration",
        "Idefics3ForConditionalGeneration",
        "InternVLChatModel",
        "InternVLForConditionalGeneration",
        "JanusForConditionalGeneration",
        "KimiK25ForConditionalGeneration",
        "KimiVLForConditionalGeneration",
        "Kimi_K25ForConditionalGeneration",
        "Lfm2VlForConditionalGeneration",
        "LightOnOCRForConditionalGeneration",
        "LightOnOcrForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "LlavaNextForConditionalGeneration",
        "LlavaNextVideoForConditionalGeneration",
        "LlavaOnevisionForConditionalGeneration",
        "NemotronH_Nano_Omni_Reasoning_V3",
        "NemotronH_Nano_VL_V2",
        "NemotronH_Omni_Reasoning_V3",
        "Qwen2AudioForConditionalGeneration",
        "SmolVLMForConditionalGeneration",
        "UltravoxModel",
        "VipLlavaForConditionalGeneration",
        "VoxtralForConditionalGeneration",
    ),
    _ANY,
)
