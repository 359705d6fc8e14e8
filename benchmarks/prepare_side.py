"""One timed tokenising of pairs, one way; prints one line of JSON. ``prepare_vs_datasets`` starts it.

``datasets`` and ``trl`` need those two libraries; how to install them stands in ``benchmarks.trl_side``.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.pairs import pair

SLICE = 1000
PARTS = ("prompt_ids", "chosen_ids", "rejected_ids")
Timed = tuple[Callable[[], Any], Callable[[Any], Iterable[Sequence[list[int]]]]]
"""What is timed, and how the ids are taken from its result."""


def conversations(count: int) -> list[dict[str, Any]]:
    """The rows, as every side is given them."""
    return [
        {name: [{"role": "user" if name == "prompt" else "assistant", "content": text}] for name, text in row.items()}
        for row in map(pair, range(count))
    ]


def digest(rows: Iterable[Sequence[list[int]]], end: int) -> str:
    """A name for all ids in order; what a template writes behind the last token ``end`` is left out."""
    found = hashlib.sha256()
    for prompt, *answers in rows:
        cut = [ids[: len(ids) - ids[::-1].index(end)] if end in ids else ids for ids in answers]
        found.update(json.dumps([prompt, *cut]).encode())
    return found.hexdigest()


def rondo_api(rows: list[dict[str, Any]], tokenizer: Any, _: Path) -> Timed:
    """Pairs in memory to lists of ids."""
    from stages.core.formats import parse_pair
    from stages.core.tokens.templates import ChatEncoder

    pairs = [parse_pair(row) for row in rows]
    encoder = ChatEncoder(tokenizer)
    encoder.prompt(pairs[0].prompt)  # the copy of the tokenizer is made once a process

    def run() -> list[Any]:
        return [each for at in range(0, len(pairs), SLICE) for each in encoder.pairs(pairs[at : at + SLICE])]

    return run, lambda found: [[getattr(each, name) for name in PARTS] for each in found]


def rondo_arrow(rows: list[dict[str, Any]], tokenizer: Any, folder: Path) -> Timed:
    """Records to a file of a shard's rows, in this process with the tokenizer's threads."""
    records = _records(rows, tokenizer)
    return lambda: _written(folder, map(_encoded, range(0, records, SLICE))), _read


def rondo_workers(rows: list[dict[str, Any]], tokenizer: Any, folder: Path) -> Timed:
    """The same by two processes."""
    records = _records(rows, tokenizer)

    def run() -> Path:
        with ProcessPoolExecutor(2, get_context("fork")) as pool:
            return _written(folder, pool.map(_encoded, range(0, records, SLICE)))

    return run, _read


_shared: dict[str, Any] = {}
"""What forked workers find in their memory."""


def _records(rows: list[dict[str, Any]], tokenizer: Any) -> int:
    import pyarrow as pa

    from stages.core.formats import parse_pair
    from stages.core.records import PAIRS, pair_row
    from stages.core.tokens.templates import ChatEncoder

    records = pa.Table.from_pylist([pair_row(parse_pair(row)) for row in rows], schema=PAIRS)
    encoder = ChatEncoder(tokenizer)
    encoder.prompt([{"role": "user", "content": "Hello"}])
    _shared.update(encoder=encoder, records=records)
    return int(records.num_rows)


def _encoded(at: int) -> Any:
    from stages.core.tokens.encoding import encode_records

    return encode_records(_shared["encoder"], _shared["records"].slice(at, SLICE), 4096, "drop").table


def _written(folder: Path, tables: Iterable[Any]) -> Path:
    from stages.core.records import SHARD
    from stages.io.tables import write_table

    write_table(folder / "rows.arrow", tables, SHARD)
    return folder / "rows.arrow"


def _read(file: Path) -> Iterable[Sequence[list[int]]]:
    from stages.io.tables import read_table

    return _columns(read_table(file))


def _columns(table: Any) -> Iterable[Sequence[list[int]]]:
    return zip(*(table[name].to_pylist() for name in PARTS), strict=True)


def datasets(rows: list[dict[str, Any]], tokenizer: Any, folder: Path) -> Timed:
    """``map(batched=True, num_proc=2)``: templates a row at a time, one call of the tokenizer a batch."""
    data = _dataset(rows, folder)

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        texts = []
        for prompt, *answers in zip(*(batch[name] for name in ("prompt", "chosen", "rejected")), strict=True):
            texts.append(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
            texts += [tokenizer.apply_chat_template(prompt + answer, tokenize=False) for answer in answers]
        ids = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        found: dict[str, list[list[int]]] = {name: [] for name in PARTS}
        for prompt, chosen, rejected in zip(ids[::3], ids[1::3], ids[2::3], strict=True):
            at = len(prompt)
            if chosen[:at] != prompt or rejected[:at] != prompt:
                at = min(common(prompt, chosen), common(prompt, rejected))
            for name, part in zip(PARTS, (prompt[:at], chosen[at:], rejected[at:]), strict=True):
                found[name].append(part)
        return found

    def run() -> Any:
        return data.map(encode, batched=True, batch_size=SLICE, num_proc=2, remove_columns=data.column_names)

    return run, lambda made: _columns(made.data.table)


def trl(rows: list[dict[str, Any]], tokenizer: Any, folder: Path) -> Timed:
    """What TRL's DPOTrainer does with its training data before the first step, by two processes."""
    from trl import DPOConfig, DPOTrainer

    data = _dataset(rows, folder)
    config = DPOConfig(output_dir=str(folder), dataset_num_proc=2, max_length=4096, report_to="none", use_cpu=True,
                       bf16=False)  # fmt: skip
    trainer = SimpleNamespace(_tokenizer=tokenizer)  # all that its method asks the trainer for

    def run() -> Any:
        return DPOTrainer._prepare_dataset(trainer, data, tokenizer, config, "train")

    return run, lambda made: [[row[name] for name in PARTS] for row in made]


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _dataset(rows: list[dict[str, Any]], folder: Path) -> Any:
    from datasets import Dataset, disable_progress_bars, load_from_disk

    disable_progress_bars()
    Dataset.from_list(rows).save_to_disk(str(folder / "data"))
    return load_from_disk(str(folder / "data"))


WAYS: dict[str, Callable[[list[dict[str, Any]], Any, Path], Timed]] = {
    "rondo_api": rondo_api, "rondo_arrow": rondo_arrow, "rondo_workers": rondo_workers,
    "datasets": datasets, "trl": trl,
}  # fmt: skip


def _cpu_seconds() -> float:
    """Of this process and those it started that have ended: less moved than the clock by what else the machine does."""
    return sum(os.times()[:4])


def main() -> None:
    options = json.loads(sys.argv[1])
    # As in a run: processes that share the cores leave the tokenizer one thread each.
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if options["way"] in ("rondo_api", "rondo_arrow") else "false"
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options["model"])
    with tempfile.TemporaryDirectory() as folder:
        run, ids = WAYS[options["way"]](conversations(options["rows"]), tokenizer, Path(folder))
        started, used = time.perf_counter(), _cpu_seconds()
        found = run()
        clocks = {"seconds": time.perf_counter() - started, "cpu_seconds": _cpu_seconds() - used}
        result = {**clocks, "digest": digest(ids(found), tokenizer.eos_token_id)}
    print("RESULT " + json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
