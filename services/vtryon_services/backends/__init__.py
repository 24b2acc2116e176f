"""Where a stage's arithmetic happens: `torch` in this process, `scripted` nowhere.

`loading` gives what `protocols` describes, whichever it is.
"""
