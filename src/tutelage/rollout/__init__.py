"""Prompt -> Response on this machine: sampling, decoding with a KV cache, and scoring of given answers."""
