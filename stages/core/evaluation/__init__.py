"""What an evaluation computes: win rates and their intervals, judges' agreement, measures of texts, KL.

Scores, lengths, verdicts, texts and log-probabilities come in; numbers go out. It imports ``core.bootstrap``, numpy
and scipy; it knows no stage and no table. docs/evaluation.md says when to use which.
"""
