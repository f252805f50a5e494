"""What a user would pick instead, measured beside the service: the same model, states and requests behind other servers.

`python -m srp4ctr_loadtest.peers install` makes an environment for each, `... run` measures and reports.
"""
