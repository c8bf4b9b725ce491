"""How much a file loses against its reference, computed by llama.cpp: `dynquant eval`."""
