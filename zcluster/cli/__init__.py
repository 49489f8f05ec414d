"""The command line: turns words into calls of `launch`, `api` and `bench`, and what these say into text or JSON.

Not here: any logic that a Python program might want as well; that lives in the layers below.

    main            the command group, global options, errors and exit codes
    context         what every verb is handed: the chosen cluster, and how to speak
    cluster         up, down, stop, start, restart, ls, wait, status, logs, checkpoint
    faults          kill, pause, resume
    backup  recover            backup, restore; what to do when a majority is lost
    transfer  verify           moving leadership, comparing states
    kv  task  bench  meta      data, tasks, measurements, the tool itself
    demo            a cluster surviving its leader's death, on the user's own machine
    config_sources  settings from flags, environment and files, with their origins
    duration        "10s", "500ms", "2m" as seconds
    table           rows as aligned text
    status_view     a status as headline, table and advice
    log_view        the ends of many log files as one, and what is added to them

Rules. Data go to standard output, everything else to standard error; with --json exactly one object goes to standard
output. `--help` loads `main` and `context` alone. Modules with verbs import only click and the standard library at
their top; zmq, msgspec, rich and the layers below are imported inside the functions that need them.
"""
