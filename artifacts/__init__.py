"""Where results are kept: digests, records, objects, locks and refs."""
