"""What happens to a source's rows on their way to the training shards: configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from stages.base import Config, Share
from stages.core.formats.config import FormatConfig
from stages.core.tokens.config import Truncation


def _action(value: str | float) -> str | float:
    if value in ("keep", "drop") or (isinstance(value, float) and 0 < value < 1):
        return value
    raise ValueError(f"expected keep, drop or a number between 0 and 1, got {value!r}")


Action = Annotated[str | float, AfterValidator(_action)]
"""What happens to a pair that a filter finds: kept, dropped, or kept with its weight multiplied by a number."""


class MixConfig(Config):
    """A source's place in the mixture."""

    task: str = ""
    """Name under which its pairs are counted and measured."""
    weight: PositiveFloat = 1.0
    """How often its pairs are trained on: 2 takes each twice, 0.5 a fixed half of them, chosen by their content."""
    max_pairs: PositiveInt | None = None
    """At most this many of its pairs, before the weight: a fixed choice by content, which more data changes little."""


class LabelsConfig(Config):
    """How several annotators' votes become the probability that chosen is preferred."""

    aggregate: Literal["share", "dawid_skene", "bradley_terry"] = "share"
    """The plain share of the votes (a tie is half a vote), or a model that also estimates how good each annotator is
    (Dawid and Skene 1979), or how good each answer is (Bradley and Terry 1952)."""
    min_votes: PositiveInt = 1
    """Pairs put to annotators that have fewer votes, not counting abstentions, are left out."""
    ties: Literal["drop", "keep"] = "drop"
    """What happens to pairs whose probability is one half."""


class FilterConfig(Config):
    """What happens to pairs that the quality report would name."""

    duplicates: Action = "drop"
    """The same prompt, chosen and rejected as an earlier pair."""
    near_duplicates: Action = "keep"
    """Nearly the same words as an earlier pair (MinHash)."""
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Jaccard similarity of word 5-grams from which two pairs count as nearly the same."""
    contradictory: Action = "keep"
    """The same prompt and answers as another pair, preferred the other way round."""
    contaminated: Action = "keep"
    """The prompt shares an n-gram of words with a held-out prompt."""
    ngram: PositiveInt = 13
    """Words in that n-gram; a shorter prompt counts when it is the same."""
    languages: tuple[Annotated[str, Field(pattern="^[a-z]{2,3}$")], ...] = ()
    """Keep only pairs whose chosen response is in one of these languages (ISO 639-1); empty keeps all."""
    max_words: PositiveInt | None = None
    """Drop pairs whose prompt and one response together have more words."""
    max_length_ratio: Annotated[float, Field(gt=1)] | None = None
    """Drop pairs in which one response has this many times the words of the other."""


class CurateConfig(Config):
    """Which of all files' pairs are trained on, and which are held out.

    ``mix`` has one entry per source, ``source_of`` the source of each input file.
    """

    mix: tuple[MixConfig, ...]
    source_of: tuple[int, ...]
    labels: LabelsConfig = LabelsConfig()
    filters: FilterConfig = FilterConfig()
    heldout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the prompts that are held out with all their pairs, chosen by the prompt's content."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The stage fails when a larger share of a source's rows is in quarantine."""


class QualityConfig(Config):
    """What the quality report looks for, and how closely."""

    tasks: tuple[str, ...] = ()
    """The task of each input file, as in the mixture; empty where there are none."""
    kinds: tuple[str, ...] = ()
    """Kinds of pairs that should be equally frequent, such as factuality and safety; empty takes those that occur."""
    similarity: Annotated[float, Field(gt=0, le=1)] = 0.8
    ngram: PositiveInt = 13
    """Both as in ``FilterConfig``."""
    sample: PositiveInt = 100_000
    """With more rows than this, slow checks look at a fixed sample chosen by the prompt's content."""
    named: PositiveInt = 20
    """The most rows that a finding names."""


class IngestConfig(FormatConfig):
    kind: Literal["pairs", "prompts"]


class EncodeConfig(Config):
    max_length: PositiveInt = 1024
    """Tokens of prompt and response together."""
    truncation: Truncation = "drop"
    """What happens to longer pairs (``stages.core.tokens.truncation``)."""


class PrepareConfig(Config):
    shard_rows: PositiveInt = 2048
    preferences: Share = 1.0
    """Share of the selected pairs that are taken."""
    replay: Share = 0.0
    """Share of the pairs under ``replay``, and of those that ``past_selection`` chose, that are added to the others."""
    heldout: bool = False
    """Take the held-out rows of the selection instead of the others."""
    source_of: tuple[int, ...] = ()
    """The source of each file of ``selected``."""
    past_of: tuple[int, ...] = ()
    """Which ``past_selection`` each file of ``past`` belongs to."""
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """The stage fails when a larger share of a source's rows was refused, whether by reading or by tokenising."""
