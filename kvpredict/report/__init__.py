"""The report: one HTML file that needs nothing else, drawn from what ``result.json`` holds and from nothing more.

``draw`` makes the plots as SVG texts, ``render`` the page around them; a report can be drawn again from a saved
result at any time.
"""

from kvpredict.report.decode import draw_decoding
from kvpredict.report.page import render, render_tables
from kvpredict.report.plots import draw

__all__ = ["draw", "draw_decoding", "render", "render_tables"]
