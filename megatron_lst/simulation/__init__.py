"""A rank of any job without the others and without values: how much it makes, says, opens, holds and sends.

`rank`      one rank of any layout on PyTorch's meta device, in a process group that is not there
`trace`     the operators, collectives and bytes of its step
`counting`  what a process does to files, groups and other ranks, counted as it happens, here and on real ranks
`others`    what the other ranks would have said
`job`       a whole job of one rank: start, first batch, steps, save, resume
`report`    many of them in a table
"""
