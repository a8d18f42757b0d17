"""Safety judges.  What measures here also guards in `serve`: the same code."""
