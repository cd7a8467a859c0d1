"""Features of a stream: what to compute (spec), what computes it (windows, state), and Feast as front door.

Reading order: spec → windows → sketch → recent → state → dedup → packed → online → asked → history → offline →
repository. Nothing here knows of models.
"""
