"""From JSONL files to the batches of a step: rows -> encode -> prepare -> prepared -> order -> batches."""
