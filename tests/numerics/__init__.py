"""Mathematics against hand tables, identities and witnesses that we did not write."""
