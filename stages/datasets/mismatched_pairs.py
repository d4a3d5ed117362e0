"""Which pairs of a set of matching ones are parted: some hand their texts round among themselves, so that no text and no picture is used twice.

A text that only ever stood in wrong pairs, or twice, would give its pair away without a look at the picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


def partners(groups: Sequence[str], share: float, draw: np.random.Generator) -> list[int]:
    """For each pair the position whose text it gets: its own, or, for about `share` of them, one of another group (another patient).

    A permutation. Fewer are parted where one group has more than half of those that would be; none where there is one group only.
    """
    chosen = sorted(draw.permutation(len(groups))[: round(share * len(groups))].tolist())
    while chosen and (largest := Counter(groups[at] for at in chosen).most_common(1)[0])[1] * 2 > len(chosen):
        chosen.remove(next(at for at in reversed(chosen) if groups[at] == largest[0]))
    rank = {name: place for place, name in enumerate(draw.permutation(sorted({groups[at] for at in chosen})).tolist())}
    chosen.sort(key=lambda at: (rank[groups[at]], at))
    shift = max(Counter(groups[at] for at in chosen).values(), default=0)  # past every member of the own group
    found = list(range(len(groups)))
    for place, at in enumerate(chosen):
        found[at] = chosen[(place + shift) % len(chosen)]
    return found
