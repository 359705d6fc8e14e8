"""What the findings are called, what they mean and what to do about them, in the report's words."""

from __future__ import annotations

MEANING = {
    "duplicates": (
        "Exact duplicates",
        "The same prompt, chosen and rejected as an earlier row. They weigh more than they should.",
        "filters.duplicates: drop (the default)",
    ),
    "near_duplicates": (
        "Near duplicates",
        "Prompt and both answers have nearly the same words as an earlier row's (exact duplicates not counted).",
        "filters.near_duplicates: drop, or a factor such as 0.5",
    ),
    "contradictory": (
        "Contradictory pairs",
        "The same prompt and answers are preferred one way here and the other way there. They teach nothing but noise.",
        "filters.contradictory: drop, or look at the rows: one of each two is wrong, or both answers are as good",
    ),
    "same_answers": (
        "Chosen = rejected",
        "Both answers are the same but for case and white space. There is nothing to learn from them.",
        "take these rows out of their file (rows whose answers are the same letter by letter went to quarantine)",
    ),
    "length_bias": (
        "Length bias",
        "How often the longer answer wins. Far from one half, a policy can learn the length instead of the quality.",
        "filters.max_length_ratio, train.length_normalise, or a loss such as simpo that is a mean over tokens",
    ),
    "contamination": (
        "Held-out prompts in training",
        "Training prompts that are the same as a held-out prompt, or share a long run of words with one. What is "
        "measured on these held-out prompts is too good.",
        "filters.contaminated: drop",
    ),
    "label_noise": (
        "Label noise",
        "How often a label seems to be wrong, from annotators who disagree, rows that contradict each other and near "
        "duplicates with the other preference. Copied rows agree with themselves, so it may be more.",
        "labels.aggregate: dawid_skene where there are votes; train.loss: robust with this rate as label_smoothing",
    ),
    "languages": (
        "Languages",
        "Rows whose answer is in another language than most.",
        "filters.languages: [en], or a source of its own for each language",
    ),
    "balance": (
        "Balance of kinds",
        "Kinds of pairs that are missing or thin, and rows of none.",
        "mix weights (weight, max_pairs) of the sources, or more data of the thin kinds",
    ),
}
"""Each finding's title, what it means, and what to do."""
