"""Features of a stream: what to compute (spec), what computes it (windows, state), and Feast as front door.

Reading order: spec → windows → state → dedup → packed → online → repository. Nothing here knows of models.
"""
