"""Why a run is where it is: a Snapshot of what the cluster says -> one line and a next step. Pure.

Start at explain.py. Nothing here fetches or prints.
"""
