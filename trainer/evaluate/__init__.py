"""How good a run's model is at its task: answers to held-out prompts, their scores, and runs compared."""
