"""How good a model is at a task: rows, scorers, lm-evaluation-harness, the scoreboard."""
