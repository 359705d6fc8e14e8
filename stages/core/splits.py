"""Which prompts are held out: a matter of the prompt alone, so it stays as it is whatever else there is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def held_out(prompt_keys: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Whether each prompt is held out, from the 64 bits of its key (``records.prompt_key``) and the share that is.

    Keys spread evenly, so those below the share of all possible keys are about that share of the prompts. A larger
    share holds out the same prompts and more. ``share`` is at least 0 and below 1.
    """
    return prompt_keys < np.uint64(int(share * 2**64))
