"""How programs reach a cluster: the retry logic, and two drivers that carry it out.

    session     PURE: frames in flight, retries, leader hints, deadlines
    flight      PURE: the values it works on: operations that wait, frames on their way
    answers     PURE: what nodes answer: whether it makes sense, which error it is
    operations  PURE: types, sizes, consistency and time, checked before anything is sent
    pipeline    several operations as one frame
    channel     DEALER sockets shared by the threads of a client
    kv          KV: blocking calls, safe for many threads, over a channel
    aio         AsyncKV: the same with `async`, over the sockets of the running event loop

Not here: tasks (zcluster.tasks), finding a cluster (zcluster.api), anything a node does.
"""
