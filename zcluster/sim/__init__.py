"""The proof: production code in simulated worlds, its crash states enumerated, its histories judged.

Nothing of it runs in a cluster. It imports the pure parts that serve users (replica, consensus, machines, storage,
client session), never sockets or the event loop.
"""
