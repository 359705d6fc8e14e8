"""What is wrong with preference data: detectors, the filters that act on them, and the report that shows them.

Everything streams Arrow files in one process; memory grows by some bytes per row, never by its text.
"""
