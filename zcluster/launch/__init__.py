"""Starting, watching, killing and removing the processes of clusters.

Purpose: turn a description (`config.ClusterSpec`) into living processes and keep them as the user wants: up, down or
paused. Find them again when the supervisor was killed. Leave nothing behind when a private cluster's owner is gone.

Not here: what the processes do (`node`, `tasks`), and what a cluster is for (`api`). Children are started by
`python -m` and never imported, so that importing this package costs little and a child owes nothing to its parent.

    up / LocalCluster                       a user's process; may come and go
      └─ supervisor                         session of its own; one a cluster (flock on <cluster>/lock)
           ├─ n1        replica ┐           each child leads a session and a process group of its own;
           ├─ n1.w1     worker  ┘ node n1   a node is its replica and its workers: killed, paused and stopped together
           ├─ n2, n2.w1         node n2
           └─ router    tasks               restarted whatever kills it

Files, lowest first:
    process      the system's processes: spawn, identify, signal, wait, collect
    files        what is written about them: run files, locks, logs; removing it all
    restart      pure: what a child's death means and when it starts again
    fleet        the children of one cluster and what the user wants of them
    logs         the event log; every log kept bounded
    requests     the supervisor's end of the control socket
    membership   pure: the next steps from the nodes that there are to those that there are to be
    reconcile    takes those steps, in the supervisor's loop
    verbs        what each request does
    supervisor   one loop over pidfds, the control socket and timers
    layout       a cluster's directory: create, change safely, list, remove
    control      the other end of that socket; starts a supervisor that adopts when there is none
    probe        asking replicas and the router, in bounded time
    report       the status of a cluster as one dictionary
    readiness    pure: what is still missing, and whether waiting is hopeless
    handles      `Node` and single processes, as users see them
    cluster      `Cluster`: the handle that users and the command line hold
    transfer     letting another node lead
    verify       comparing the states of all replicas
    plant        a new cluster whose replicas begin with a given state, whole or not at all
    backup       from a running cluster to one file, and from one file to a new cluster
    recover      a majority is lost: a new cluster from one node's data
    named        up, down, ls: by name, also where there is no handle to be had
    local        `LocalCluster`: a private cluster that belongs to one Python process
    executor     `Executor`: concurrent.futures over a cluster, a private one if need be
    sweep        `python -m`: the last line of defence when owner and supervisor were both killed

Trade-offs. The parent-death signal (PDEATHSIG) is used nowhere. It fires when the creating *thread* ends, and it would
kill what must live on: nodes outlive a killed supervisor and are adopted by the next one. Owners are watched by pidfd
instead, by the supervisor and, should that be killed too, by every child. Children lead sessions, not only groups: when
a parent dies, the kernel continues *stopped* groups of its session with SIGHUP, which would end a paused node.
"""
