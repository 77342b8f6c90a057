"""The pure core: nothing here waits, reads, writes, logs, asks for the time or is random.

Time and identity are inputs; what is owed to the outside is returned as data. A newcomer reads
`decider.py` first, then the flows, one page each.
"""
