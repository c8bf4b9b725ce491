"""What is on disk: a folder of safetensors files, or a GGUF file's header."""
