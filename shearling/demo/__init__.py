"""The demos: the user's own commands, one after the other, and what came out of them; imports no stage.

`shears/` prunes and searches ranks, `lonas/` searches widths. Both go the same road: `plan.py` says which commands,
`walk.py` carries them out, `outcome.py` reads what they wrote, `screen.py` and `report.py` show it.
"""
