"""What a process of pytest-xdist runs while another one collects for it: it offers that its connection, and waits.

``helpers/one_collection.py`` tells it where. pytest-xdist sends this file as text, so it imports nothing of the tests
until it knows where they are.
"""

if __name__ == "__channelexec__":
    import json
    import os
    import signal
    import sys

    channel = globals()["channel"]
    told, args, options, path = channel.receive()
    sys.path = path
    if told["prepares"]:
        from tests.helpers.prepared import prepare_for

        prepare_for(args)
    io = channel.gateway._io
    numbers = {"reading": io.infile.fileno(), "writing": io.outfile.fileno()}
    offer = {**numbers, "pid": os.getpid(), "channel": channel.id, "input": told, "basetemp": options.get("basetemp")}
    with open(told["lends"], "w") as pipe:  # waits until the other process has collected
        pipe.write(json.dumps(offer) + "\n")
    signal.pause()
