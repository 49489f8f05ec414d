"""Replicated state machines: what the log's entries do to the state. Pure and deterministic.

    api       the contract: apply / query / capture / restore
    mux       ClusterMachine: frames in, result bodies out; snapshot format, schema version
    sessions  the exactly-once table
    kv        keys and values, revision, overlay for captures
    keys      sorted view of the keys, built only when somebody lists

Not here: when to capture, where a snapshot lies on disk, who may ask (see zcluster.node and zcluster.storage).
"""
