"""The report of a plan: what it was built from, what was measured of it, and what was not; the verb `report`.

`subject` gathers what the store knows of one plan. `summary`, `accuracy`, `inside`, `speed`, `calibration` and `origin`
each say one thing about it in `blocks`: sentences, tables and charts. `page` makes one HTML file of these, and
`markdown` what Prefect shows of the same tables. `charts` alone knows matplotlib, and `page` alone Jinja2.
"""
