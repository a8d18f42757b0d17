"""Evaluation: Responses -> a Report in which every rate has its interval.  No tensors: engines come as arguments."""
