"""Pure functions of tensors, cited.  No model, no config, no logging; imports torch and nothing of ours."""
