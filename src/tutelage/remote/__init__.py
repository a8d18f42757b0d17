"""Engines behind an address: anything that speaks the OpenAI API.  httpx only, no torch."""
