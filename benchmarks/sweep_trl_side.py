"""One configuration of a sweep trained and evaluated by TRL's DPOTrainer; prints one line of JSON.

``sweep_vs_separate`` starts it. TRL is installed as for ``trl_side``, whose settings it shares.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.trl_side import base_model, best_settings, prepare

MICRO_BATCH = 2
"""Pairs of a forward pass; the fastest on a CPU (README)."""


def run(options: dict[str, Any]) -> dict[str, Any]:
    """``train`` and ``heldout`` name files of pairs, ``precompute`` is whether the reference's log-probabilities are
    computed before training; ``train_config`` has Rondo's names and values."""
    prepare(options["threads"], bf16=True)
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, set_seed
    from trl import DPOConfig, DPOTrainer

    asked, folder, scratch = options["train_config"], Path(options["model"]), options["scratch"]
    files = {"train": options["train"], "heldout": options["heldout"]}
    pairs = load_dataset("json", data_files=files, cache_dir=options["cache"])
    steps = -(-len(pairs["train"]) // asked["batch_size"]) * asked["epochs"]
    lora = asked["lora"]
    # TRL finds what it has computed for the reference by a hash of the model, the fresh adapter included, and of how
    # the pairs were made. With the truncation keep_start all settings are part of that, and no other training finds it.
    set_seed(asked["seed"])
    adapter = LoraConfig(
        r=lora["rank"], lora_alpha=lora["alpha"] or 2 * lora["rank"], lora_dropout=lora["dropout"],
        target_modules=lora["target_modules"], use_dora=lora["dora"], use_rslora=lora["rslora"], task_type="CAUSAL_LM",
    )  # fmt: skip
    config = DPOConfig(
        **best_settings(scratch, MICRO_BATCH, asked["batch_size"], bf16=True),
        per_device_eval_batch_size=evaluated_together(len(pairs["heldout"])), num_train_epochs=asked["epochs"],
        beta=asked["beta"], learning_rate=asked["learning_rate"], weight_decay=asked["weight_decay"],
        lr_scheduler_type="linear", warmup_steps=round(asked["warmup"] * steps), max_length=1024,
        truncation_mode="keep_end", precompute_ref_log_probs=options["precompute"],
        train_sampling_strategy="group_by_length", remove_unused_columns=False,
    )  # fmt: skip
    started = time.perf_counter()
    trainer = DPOTrainer(
        model=base_model(folder), args=config, train_dataset=pairs["train"], eval_dataset=pairs["heldout"],
        processing_class=AutoTokenizer.from_pretrained(folder), peft_config=adapter,
    )  # fmt: skip
    prepared = time.perf_counter() - started
    trainer.train()
    trained = time.perf_counter() - started - prepared
    found = trainer.evaluate()
    trainer.save_model(scratch)
    return {
        "prepare_seconds": prepared, "train_seconds": trained, "steps": trainer.state.global_step,
        "heldout_loss": found["eval_loss"], "reward_accuracy": found["eval_rewards/accuracies"],
        "reward_margin": found["eval_rewards/margins"],
    }  # fmt: skip


def evaluated_together(count: int) -> int:
    """Pairs of a forward pass in evaluation: TRL averages over batches, which is exact for batches of one size."""
    return next(size for size in (2, 3, 5, 1) if count % size == 0)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    stdout, sys.stdout = sys.stdout, sys.stderr
    measured = run(json.loads(sys.argv[1]))
    print("RESULT " + json.dumps(measured), file=stdout, flush=True)
