"""Models on disk: folders of safetensors files, GGUF headers, quantized formats, the Hub."""
