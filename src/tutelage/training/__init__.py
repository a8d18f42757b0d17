"""The loops: one file an algorithm, each a step that reads like its paper."""
