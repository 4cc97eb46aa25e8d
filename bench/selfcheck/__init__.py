"""Known allocations and known work for every meter of this machine: does each tell the truth?

``zometer doctor --selfcheck``. What a GPU does can't be known without one, so the part that
looks at it runs where somebody has one; everything else is also a test.
"""
