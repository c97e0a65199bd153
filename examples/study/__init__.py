"""The study: baseline, static and curriculum patching on real audio, with several seeds, on a CPU.

`corpus` makes shard sets of units that carry words, `arms` says what is compared under which budget, `measure` scores
held-out items, `running` trains every (arm, seed) with the real engine, `summary` and `figure` say what was found.  It
shows how such a comparison is made and how sure it is; at this size it cannot show that the paper's results hold.
"""
