"""Timelines: what each device does and when, predicted and measured, as SVG, HTML or a trace."""

from agent.timeline.formats import ENDINGS, render
from agent.timeline.series import Series, with_waits
from agent.timeline.traces import series_of

__all__ = ["ENDINGS", "Series", "render", "series_of", "with_waits"]
