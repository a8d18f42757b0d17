"""Whole circles made of the loops: what `tutelage demo` runs."""
