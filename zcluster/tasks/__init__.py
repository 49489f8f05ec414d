"""Python functions on other processes: a pool for callers, a router in the middle, workers that run one task each.

Purpose: run calls in parallel and in spite of crashes, with little cost per call, so that many small tasks are worth
sending. Not the purpose: durability over a full restart (a task lives as long as its client), scheduling by resources,
or streaming of results. Consensus is not touched.

    client process                        router                          worker process (one task at a time)
    pool.submit --SUBMIT [function,task]--> queue --WORK [function,task]--> main thread: note it, run it
       future  <--NEWS [result, grants]---  dispatcher <--DONE [result]---- attendant: recalls, pings meanwhile
         | cancel / claim --CANCEL-->          |   --RECALL [task]-->
         |                                     `--- pidfds of workers and clients: proof of death

A small answer that somebody waits for is also sent from the worker to the client at once (`direct`).

    pure, the decisions                             the process in the middle
      dispatcher  what becomes of a task              router       the loop
      queue       handing tasks out                   client_side, worker_side, side   its two sockets
      placement   who may take how much               peers        one process as the router sees it
      policy      which worker of those             a worker
      grants      credits of clients                  worker, line   the process; its socket and attendant
      durations   how long tasks take                 execute      running one task
      reunion     after a restart of the router       word         what it runs, readable after its death
      outgoing    what is to be sent                  modules      noticing changed source files
      records     the data of all these             a client
    both ends                                         pool, aio    for threads and coroutines
      protocol    the messages                        link, calls  its side of the protocol
      payload     functions, values, failures         futures      single calls
      direct      the short cut                       chunks       `map`

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
