"""The colours of the series task: one colour for one thing, in every picture.

Chosen so that each pair stays apart for a viewer without red cones or without green cones (CIE76 distance of at least 20, tested), and so that each can
be seen on the light and on the dark page. What is said by colour is said by shape, place or text as well.
"""

from __future__ import annotations

NORMAL, ANOMALY, DISTURBING = "#0072B2", "#D21F3C", "#EE9A00"
TEACHER, STUDENT = "#009E73", "#C77CFF"
QUIET = "#7A8790"  # controls, thresholds, what stands behind

KINDS = {"normal": NORMAL, "disturbing": DISTURBING, "anomaly": ANOMALY}  # of a step or a window
PARTS = {"reconstruction": TEACHER, "discrepancy": STUDENT, "combined": NORMAL}  # of the masked autoencoder's score
HEAT = ["#FFF3E0", "#FDBB84", "#E34A33", "#7F0000"]  # little to much, on light and on dark alike
NAMED = [NORMAL, ANOMALY, DISTURBING, TEACHER, STUDENT]  # rows or categories beside each other, where their order is all that is meant
