"""The command line: renders Kubernetes Jobs that request Ascend NPUs, submits and follows them.

Must not import MindSpore; of `jobs` only specs, errors, prompts, layout, stores and commits.
"""
