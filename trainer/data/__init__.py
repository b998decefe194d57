"""From files of rows to the batches of a step: rows -> encode -> prepare -> prepared -> order -> batches."""
