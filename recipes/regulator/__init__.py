"""A task that can be judged: reports of invented banks, the prudential rules that they break, and the directive.

`python -m recipes.regulator.data FOLDER` writes the data; full.yaml and lora.yaml train on it.
"""
