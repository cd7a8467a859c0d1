"""The report of a run: one self-contained HTML page, and its headline figures.

Reading order: page.py (what `write_report` puts together), data.py (the archive's answers), summary.py (the
figures), tiles.py, curves.py, plots.py and tables.py (what the page shows), svg.py (what the plots are made of),
words.py (numbers and evidence as text), style.py.
"""

from streams.report.page import write_report

__all__ = ["write_report"]
