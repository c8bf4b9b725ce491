"""Llama.cpp in this process: its library, a loaded model, and the caches that it computes with.

Only the worker process imports this room.
"""
