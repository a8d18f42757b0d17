"""The nouns and the verbs that every room shares.  Standard library only."""
