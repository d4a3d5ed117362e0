"""`assay tune`: what a search tries (space), what it is judged by (planting, trials), how it goes on (search), and what follows from it
(decision, takeover).
"""
