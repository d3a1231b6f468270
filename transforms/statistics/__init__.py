"""Statistics of scores: counted by group, merged over shards, with bootstrap intervals.

`statistics.py` is the way in. `statistic.py` says what is counted together and what comes of it,
`score_columns.py` makes columns of scores, `accumulator.py` adds them up, `bootstrap.py` has the
weights of the images, and `intervals.py` the intervals.
`paired.py` compares methods by paired differences, `sign_flip.py` tests one, and `ranking.py` says
which of many are alike.
"""
