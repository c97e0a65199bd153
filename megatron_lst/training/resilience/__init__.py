"""What keeps a run alive, and what stops it in time: small classes that know no trainer, engine or model.

Each needs at most a callable that combines a number over ranks; the trainer decides when to call what.

`signals`    a signal on any rank becomes one decision of all ranks, at a step's end
`outcome`    STOPPED.json: how the run ended, and whether the scheduler should start it again
`lock`       one run folder, one job; a requeued job takes over and its orphan stops
`watchdog`   a step that hangs: stacks of all ranks, and the name of the one that did not arrive
`faults`     steps that are not finite, loss spikes
`stragglers` the rank that is slower than the others
`agreement`  every rank has the same configuration and the same code, or none starts
`events`     events.log, one line an event
"""
