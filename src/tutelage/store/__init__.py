"""The disk: run folders, metrics, checkpoints and (with the web app) judgements.  Knows no tensors and no HTTP."""
