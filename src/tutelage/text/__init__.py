"""The door between words and tokens: chat templates, masks, packing.  The only place that knows special tokens."""
