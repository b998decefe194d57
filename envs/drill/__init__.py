"""The rehearsal: the user's own recipe, with a small model, through the faults that a cluster has in store."""
