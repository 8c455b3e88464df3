"""Studies: a file that lists many runs, and the table of their results; the demo is one.

A study never trains or evaluates by itself; it starts runs (`staytrue.runs`), and a run knows nothing of its study.
"""
