"""LoRA adapters of PEFT: read, merged into a checkpoint, or described as a GGUF of their own."""
