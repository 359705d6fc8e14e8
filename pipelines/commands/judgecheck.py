"""``rondo judge-check``, the command; ``judgerun`` does what it says."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.common import DEFAULT_STORE, JsonOption, StoreOption, VerboseOption, open_store, refuse_all


def judge_check(
    judge: Annotated[
        str, typer.Argument(metavar="JUDGE", help="A spec, or a YAML file with only its judge section; or a recipe.")
    ],
    what: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Preference pairs of people: a path, folder, glob, or s3://, gs://, hf://."
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override the judge, as in --set judge.both_orders=false."),
    ] = None,
    read: Annotated[
        list[str] | None,
        typer.Option("--read", metavar="KEY=VALUE", help="How to read DATA, as in --read fields.prompt=question."),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Judge N of the pairs, by chance.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of that choice.")] = 0,
    store: StoreOption = DEFAULT_STORE,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Measure a judge on answers that people have judged: how often it says what they say, and what else it follows.

    Each pair is put before the judge in an order that does not tell which answer people prefer. The report has the
    accuracy with its interval, with and without ties, Cohen's kappa, how often people agree among themselves where
    several have voted, and whether the judge favours a place or the longer answer. Pairs are in any format that rondo
    data reads. What a language model has said is kept in the store: the second time nothing is asked.

    For example, with judge.yaml holding "judge: {use: rules, min_words: 20}" and one pair a line in votes.jsonl:

    {"instruction": "...", "response1": "...", "response2": "...", "annotator1": 1, "annotator2": 0}

    rondo judge-check judge.yaml votes.jsonl --limit 200
    """
    from pipelines.commands import judgerun
    from pipelines.spec.problems import SpecError
    from stages.judge.check.config import LabelledConfig

    try:
        opened = open_store(store)
        config = LabelledConfig(limit=limit, seed=seed)
        planned = judgerun.plan(judge, what, overrides or (), read or (), config, opened)
    except SpecError as error:
        refuse_all(error)
    raise typer.Exit(judgerun.make(planned, opened, as_json, verbose))
