"""LoRA adapters of PEFT: read, merged into a checkpoint, or written as a separate GGUF."""
