"""Data as users have them: batches to calibrate with and held-out inputs to validate with.

`reading.opened` is the one door. Behind it stands a module for each kind of source, which gives what it has in pieces:
`arrays`, `images`, `datasets`, `own` (the user's own Python) and `drawn` (random numbers). `options` says what a config
can ask of them.
"""
