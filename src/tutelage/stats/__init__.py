"""Rates with intervals, raters who agree, models in order.  numpy and scipy only; no nouns of ours."""
