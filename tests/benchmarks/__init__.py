"""Comparisons with peers, run by hand: CPU seconds of both sides in one process, printed as ratios."""
