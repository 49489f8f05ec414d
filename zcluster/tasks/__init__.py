"""Python functions on other processes: a pool for callers, a router in the middle, workers that run one task each.

Purpose: run calls in parallel and in spite of crashes, with little cost per call, so that many small tasks are worth
sending. Not the purpose: durability over a full restart (a task lives as long as its client), scheduling by resources,
or streaming of results. Consensus is not touched.

    client process                        router                          worker process (one task at a time)
    pool.submit --SUBMIT [function,task]--> queue --WORK [function,task]--> main thread: note it, run it
       future  <--NEWS [result, grants]---  dispatcher <--DONE [result]---- attendant: recalls, pings meanwhile
         | cancel / claim --CANCEL-->          |   --RECALL [task]-->
         |                                     `--- pidfds of workers and clients: proof of death

    policy      which worker next (pure)            payload   functions, arguments, results, failures as bytes
    records     what the dispatcher keeps (pure)    execute   running one task
    dispatcher  what goes where (pure)              protocol  the messages
    router      the process in the middle           line      a worker's socket and its attendant
    peers       processes as the router sees them   word      what a worker runs, readable after its death
    link        the client's side of the protocol   modules   noticing changed source files
    pool, aio   the same for threads and coroutines          futures, chunks   single calls and `map`

Guarantees:
  * A task runs at least once. It runs again only when its worker's process is proven dead (a silent worker just gets
    nothing new; what it has not started is given to others), or when a result was lost together with the router.
    With `rerun=False` it runs at most once, and a loss is an error (`WorkerDied`).
  * Every submitted task ends: with its result, what it raised, or an error that says why there is none. One under
    which `attempts_max` workers died is given up; workers that are killed on purpose (`word.spare`) do not count.
  * The router may die at any time. Its successor asks everybody; what runs is joined, not started again, what was
    queued is submitted again, by the clients that keep every payload until its result is in hand.
  * `submit` blocks while the queue is full. A dead client's queued tasks are dropped.
  * A task may wait for tasks: what nobody has started is then run by the one who waits, so that even a single worker
    never deadlocks.
"""
