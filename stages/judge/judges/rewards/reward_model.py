"""A reward model: a sequence-classification model whose one output is an answer's score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stages.core.errors import RowError
from stages.core.forward.scalar_head import unused_pad
from stages.core.records import Rollout
from stages.io.artifact import Artifact
from stages.io.parts import assigned_cpus
from stages.judge.judges.rewards.config import RewardModelJudge
from stages.judge.protocol import Judgement, NoVerdict, Row
from stages.policy.load import device_of_worker, load_encoder
from stages.policy.reward import load_reward_model, rewarding


class RewardModel:
    """The model's output for the whole conversation, written by its own chat template with the answer as the
    assistant's closed turn: the way in which such models are trained and used (Ouyang et al., arXiv:2203.02155,
    section 3.5, on ways to train one)."""

    def __init__(self, config: RewardModelJudge, model: Artifact) -> None:
        torch.set_num_threads(assigned_cpus())
        folder = model.folder()
        self._config, self._device = config, device_of_worker()
        self._encoder = load_encoder(folder)
        loaded = load_reward_model(folder, self._device)
        self._model, self._context = rewarding(loaded, config.precision, self._device)
        settings = loaded.config.get_text_config()
        known = getattr(settings, "max_position_embeddings", None) or config.max_length
        self._longest = min(config.max_length, known)
        self._vocabulary, self._pad = int(settings.vocab_size), settings.pad_token_id

    def __call__(self, rows: Sequence[Row]) -> list[Judgement | NoVerdict]:
        found: list[Judgement | NoVerdict] = []
        asked: list[tuple[Row, Rollout, list[int]]] = []
        for row in rows:
            for place, answer in enumerate(row.responses):
                try:
                    asked.append((row, answer, self._ids(row, answer)))
                except RowError as error:
                    found.append(NoVerdict(row.prompt_id, (place,), f"the reward model cannot read it: {error.reason}"))
        ids = [tokens for _, _, tokens in asked]
        for group in batches([len(tokens) for tokens in ids], self._config.batch_tokens):
            scores = self._scores([ids[index] for index in group]).tolist()
            for index, score in zip(group, scores, strict=True):
                row, answer, tokens = asked[index]
                found.append(Judgement(row.prompt_id, answer.sample, score, input_tokens=len(tokens)))
        return found

    def _ids(self, row: Row, answer: Rollout) -> list[int]:
        """Token ids of the conversation with the answer.

        Raises:
            RowError: the template refuses it, or it is too long.
        """
        ids = self._encoder.conversation([*row.messages, {"role": "assistant", "content": answer.text}], row.tools)
        if len(ids) > self._longest:
            raise RowError("answer", f"more than {self._longest} tokens with its prompt (judge.max_length)")
        return ids

    @torch.no_grad()
    def _scores(self, sequences: Sequence[list[int]]) -> Tensor:
        """The model's output for each sequence, float32 [sequences]. Padding stands on the right."""
        pad = self._pad if self._pad is not None else unused_pad(sequences, self._vocabulary)
        self._model.config.get_text_config().pad_token_id = pad
        longest = max(map(len, sequences))
        ids = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in sequences], device=self._device)
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sequences], device=self._device)
        with self._context():
            logits: Tensor = self._model(input_ids=ids, attention_mask=mask).logits
        return logits[:, 0].float().cpu()


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Places of sequences in batches of at most ``most`` tokens, padding to the longest included. Sorted by length,
    longest first, so that little is padded; one that is longer than ``most`` is alone."""
    group: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if group and lengths[group[0]] * (len(group) + 1) > most:
            yield group
            group = []
        group.append(index)
    if group:
        yield group
