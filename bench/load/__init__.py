"""The load generator: recorded speech in real time over many sessions, in any of the protocols under `dialects`.

`plan` says what is asked for, `speech` what is said, `session` is one client, `generator` one process of them,
`fleet` runs several of those and puts together what they saw (`results`).
"""
