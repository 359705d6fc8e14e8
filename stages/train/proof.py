"""Proof that a stored policy is the one that was trained: read back, it gives the same log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.base import StageError
from stages.core.forward.layout import choose_layout
from stages.core.forward.logprobs import ResponseLogprobs
from stages.core.forward.packing import Layout, collate
from stages.core.tokens.pair import EncodedPair
from stages.data.shards import ShardData
from stages.io.artifact import Artifact
from stages.io.filenames import ADAPTER, MODEL
from stages.policy.adapter_settings import ADAPTER_CONFIG
from stages.policy.load import device_of_worker, load_policy
from stages.policy.save import weight_names, weights_dtype
from stages.train import save_shares
from stages.train.worker import PairData

PROOF = "proof.json"
"""Beside a finished policy: rows of the shards, and their log-probabilities under the policy as it was trained."""
LARGEST = 2e-3
"""Nats per token. Merging an adapter in float32 moves log-probabilities by about 1e-5."""
_PAIRS, _AMONG = 4, 64


def write(model: Any, data: PairData, folder: Path) -> None:
    """Note what the trained model gives to a few of its pairs, the shortest of the first ones."""
    first = data.pairs(range(min(_AMONG, len(data))))
    rows = sorted(range(len(first)), key=lambda row: _length(first[row]))[:_PAIRS]
    layout = choose_layout(model, "auto")
    found = logprobs(model, [first[row] for row in rows], layout)
    text = json.dumps({"rows": rows, "layout": layout, "logprobs": found.tolist()})
    (folder / PROOF).write_text(text, encoding="utf-8")


def check(stored: Artifact, initial: Artifact, shards: Artifact) -> dict[str, float]:
    """``stored_difference``: the largest between the stored policy and the note, in nats per token. Of a policy that
    was saved from shares, which no worker had all of to try it, ``stored_weights``: how many are what was written.

    Raises:
        StageError: it is more than rounding in float32 explains.
    """
    policy = stored.folder()
    if (policy / save_shares.HASHES).is_file():
        return {"stored_weights": save_shares.check(policy)}
    noted = json.loads((policy / PROOF).read_text(encoding="utf-8"))
    pairs = ShardData(shards).pairs(noted["rows"])
    model = load_policy(policy, device_of_worker())
    found = logprobs(model, pairs, noted["layout"])
    tokens = torch.tensor([[len(pair.chosen_ids), len(pair.rejected_ids)] for pair in pairs]).clamp(min=1)
    differences = (found - torch.tensor(noted["logprobs"])).abs() / tokens
    largest = float(differences.max())
    if not largest <= LARGEST:  # also where it is not a number
        pair = pairs[int(differences.max(1).values.argmax())]
        raise StageError(
            f"the stored policy is not the one that was trained: the log-probabilities of pair {pair.name} differ by "
            f"{largest:.2g} nats per token; {_cause(policy, initial.folder())}"
        )
    return {"stored_difference": largest}


@torch.no_grad()
def logprobs(model: Any, pairs: Sequence[EncodedPair], layout: Layout) -> Tensor:
    """Log-probabilities of chosen and rejected responses with products in float32; float32 [pairs, 2]."""
    scorer = ResponseLogprobs(model.requires_grad_(False).eval(), layout, "fp32")
    batch = collate(list(pairs), layout).to(next(model.parameters()).device)
    try:
        found: Tensor = scorer(batch).logprobs.view(-1, 2).cpu()
    finally:
        scorer.release()
    return found


def _length(pair: EncodedPair) -> int:
    return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)


def _cause(policy: Path, initial: Path) -> str:
    """What is likely to have gone wrong, as far as the files show."""
    lost = sorted(weight_names(initial / MODEL) - weight_names(policy / MODEL))
    if lost:
        return f"{len(lost)} weights of its base are not among its own, the first is {lost[0]}"
    if (dtype := weights_dtype(policy / MODEL)) != "float32":
        return f"its weights were rounded to {dtype}"
    if (policy / ADAPTER / ADAPTER_CONFIG).is_file():
        return "merging its adapter changed other weights too: is the adapter on a head that is tied to the embedding?"
    return "no cause is known: this is a fault of Rondo"
