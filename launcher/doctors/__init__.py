"""What the verb `doctor` looks at: cluster, nodes, objects and store, a line each with its fix.

Start at doctor.py. What is asked of a cluster is in backends/clusterfacts.py.
"""
