"""A toy experiment: baseline, static and curriculum patching on an invented language, in minutes on a CPU.

`world` invents the language and writes it as shard sets, `arms` says what is compared under which budget, `measure`
scores held-out items, `running` trains every (arm, seed) with the real engine, `summary` and `figure` tell what was
found.  It shows how such a comparison is made and how sure it is; it cannot show that the paper's results hold.
"""
