"""One timed training by TRL's DPOTrainer at its best settings; prints one line of JSON. ``train_vs_trl`` starts it.

Needs TRL beside Rondo: pip install --no-deps "trl==1.16.*" datasets multiprocess xxhash dill pandas
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.pairs import pair

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def run(options: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(options["threads"])
    cuda = torch.cuda.is_available()
    bf16 = options["precision"] == "bf16"
    if bf16 and not cuda:
        torch.set_float32_matmul_precision("medium")  # float32 tensors, bfloat16 products
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    marks: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.perf_counter())

    folder = Path(options["model"])
    lora = None
    if options["mode"] == "lora":
        from peft import LoraConfig

        lora = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    rows = []
    for index in range(options["pairs"]):
        row = pair(index, options["lengths"])
        messages = {
            name: [{"role": "user" if name == "prompt" else "assistant", "content": text}] for name, text in row.items()
        }
        # What the batches are grouped by.
        rows.append({**messages, "length": len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"]))})
    micro = options["trl_micro_batch"]
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HF_DATASETS_CACHE"] = scratch
        grouped = options["trl_sampling"] == "group_by_length"
        config = DPOConfig(
            output_dir=scratch, num_train_epochs=1, learning_rate=1e-4 if lora else 1e-6, lr_scheduler_type="constant",
            per_device_train_batch_size=micro, gradient_accumulation_steps=options["batch_size"] // micro,
            gradient_checkpointing=False, bf16=bf16, optim="adamw_torch_fused", max_length=4096, beta=0.1,
            precompute_ref_log_probs=True, precompute_ref_batch_size=micro,
            train_sampling_strategy=options["trl_sampling"], remove_unused_columns=not grouped,
            logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True,
            use_cpu=not cuda, dataloader_pin_memory=False, seed=0, max_grad_norm=1.0,
        )  # fmt: skip
        started = time.perf_counter()
        trainer = DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="sdpa" if cuda else "eager"
            ),
            args=config, train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(folder),
            peft_config=lora, callbacks=[Clock()],
        )  # fmt: skip
        prepared = time.perf_counter() - started
        stdout, sys.stdout = sys.stdout, sys.stderr
        trainer.train()
        sys.stdout = stdout
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"marks": marks, "losses": losses, "reference_seconds": prepared}


if __name__ == "__main__":
    result = run(json.loads(sys.argv[1]))
    result["peak_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available():
        result["peak_device_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    print("RESULT " + json.dumps(result), flush=True)
