"""Scores of maps, and the statistics of them: the files that an evaluation writes."""
