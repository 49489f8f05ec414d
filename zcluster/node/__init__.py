"""One node's replica process.

    transport --> server --> replica --> consensus, machines     (inputs, pure from `replica` on)
    transport <-- server <-- replica                             (effects)
                     |
                  storage (log writer thread, checkpoint thread)

`replica` is pure and is what a simulator runs; `server` is the only event loop; `install` moves checkpoints;
`slices` writes checkpoints and works out digests between turns; `deaths` turns pidfds into death certificates;
`leading` decides when a leader gives up; `digests` keeps what replicas are compared by; `rebuild` reads the state out
of a dead node's data; `status` describes. Not here: starting processes, and tasks.
"""
