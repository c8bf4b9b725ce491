"""The process in which llama.cpp runs: it computes what a task asks for."""
