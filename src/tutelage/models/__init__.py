"""Networks: the embedded default, any causal LM of transformers, heads for value, reward and cost, adapters."""
