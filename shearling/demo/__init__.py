"""The demo: the user's own commands, one after the other, and what came out of them; imports no stage."""
