"""The reward that is implicit in a policy trained with preferences."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from stages.base import StageError
from stages.core.errors import RowError
from stages.core.records import Messages, PairIds, PreferencePair, Rollout
from stages.core.tokens.pair import EncodedPair
from stages.io.artifact import Artifact
from stages.io.parts import assigned_cpus
from stages.judge.judges.rewards.config import ImplicitReward
from stages.judge.protocol import Judgement, NoVerdict, Row
from stages.policy.load import load_encoder
from stages.score.config import ReferenceConfig
from stages.score.model import ScoringModel


class Implicit:
    """beta * (log pi(y|x) - log ref(y|x)), in nats times beta: the DPO paper's reward (Rafailov et al.,
    arXiv:2305.18290, equation 5) without its term beta log Z(x), which is the same for all answers to a prompt.

    Raises:
        StageError: policy and reference have different tokenizers, so that they do not score the same tokens.
    """

    def __init__(self, config: ImplicitReward, policy: Artifact, reference: Artifact) -> None:
        torch.set_num_threads(assigned_cpus())
        self._beta = config.beta
        self._encoder = load_encoder(policy.folder())
        if self._encoder.tokenizer.get_vocab() != load_encoder(reference.folder()).tokenizer.get_vocab():
            raise StageError(
                "judge.model and judge.reference have different tokenizers; give the policy's own reference"
            )
        scoring = ReferenceConfig(precision=config.precision)
        self._policy, self._reference = ScoringModel(scoring, policy), ScoringModel(scoring, reference)

    def __call__(self, rows: Sequence[Row]) -> list[Judgement | NoVerdict]:
        found: list[Judgement | NoVerdict] = []
        for row in rows:
            encoded: list[tuple[Rollout, EncodedPair]] = []
            for place, answer in enumerate(row.responses):
                try:
                    encoded.append((answer, self._encoded(row, answer)))
                except RowError as error:
                    found.append(NoVerdict(row.prompt_id, (place,), f"the policy cannot read it: {error.reason}"))
            pairs = [pair for _, pair in encoded]
            rewards = self._beta * (self._policy.score(pairs) - self._reference.score(pairs))[:, 0]
            for (answer, pair), reward in zip(encoded, rewards.tolist(), strict=True):
                tokens = len(pair.prompt_ids) + len(pair.chosen_ids)
                found.append(Judgement(row.prompt_id, answer.sample, reward, input_tokens=tokens))
        return found

    def _encoded(self, row: Row, answer: Rollout) -> EncodedPair:
        """The answer's tokens as they were sampled, if they mean the same here; else its text's.

        Raises:
            RowError: the policy's chat template cannot write the conversation.
        """
        sampled = PairIds(list(answer.prompt_ids or ()), list(answer.ids or ()), [])
        known = sampled if self._same(row, answer, sampled) else None
        written: Messages = [{"role": "assistant", "content": answer.text}]
        ended = answer.finish_reason == "stop"
        return self._encoder.pair(
            PreferencePair(row.messages, written, [], chosen_ended=ended, tools=row.tools, ids=known)
        )

    def _same(self, row: Row, answer: Rollout, sampled: PairIds) -> bool:
        """Whether ids that another model may have sampled say here what they said there."""
        if not sampled.chosen or max(sampled.chosen) >= len(self._encoder.tokenizer):
            return False
        text = self._encoder.tokenizer.decode(sampled.chosen, skip_special_tokens=True)
        return text == answer.text and self._encoder.prompt(row.messages, row.tools) == sampled.prompt
