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

from benchmarks.pairs import conversation, pair

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def prepare(threads: int, bf16: bool) -> None:
    torch.set_num_threads(threads)
    if bf16 and not torch.cuda.is_available():
        torch.set_float32_matmul_precision("medium")  # float32 tensors, bfloat16 products


def best_settings(folder: str, micro: int, batch_size: int, bf16: bool) -> dict[str, Any]:
    """What of DPOConfig every measurement has in common. ``micro`` is the pairs of a forward pass."""
    return {
        "output_dir": folder, "per_device_train_batch_size": micro, "gradient_accumulation_steps": batch_size // micro,
        "gradient_checkpointing": False, "bf16": bf16, "optim": "adamw_torch_fused", "max_grad_norm": 1.0,
        "precompute_ref_batch_size": micro, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
        "disable_tqdm": True, "use_cpu": not torch.cuda.is_available(), "dataloader_pin_memory": False, "seed": 0,
    }  # fmt: skip


def base_model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    attention = "sdpa" if torch.cuda.is_available() else "eager"
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)


def run(options: dict[str, Any]) -> dict[str, Any]:
    bf16 = options["precision"] == "bf16"
    prepare(options["threads"], bf16)
    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
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
        rows.append(
            conversation(*(
                [{"role": "user" if name == "prompt" else "assistant", "content": text}] for name, text in row.items()
            ))
        )  # fmt: skip
    micro = options["trl_micro_batch"]
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HF_DATASETS_CACHE"] = scratch
        grouped = options["trl_sampling"] == "group_by_length"
        config = DPOConfig(
            **best_settings(scratch, micro, options["batch_size"], bf16), num_train_epochs=1, max_length=4096, beta=0.1,
            learning_rate=1e-4 if lora else 1e-6, lr_scheduler_type="constant", precompute_ref_log_probs=True,
            train_sampling_strategy=options["trl_sampling"], remove_unused_columns=not grouped,
        )  # fmt: skip
        started = time.perf_counter()
        trainer = DPOTrainer(
            model=base_model(folder), args=config, train_dataset=Dataset.from_list(rows),
            processing_class=AutoTokenizer.from_pretrained(folder), peft_config=lora, callbacks=[Clock()],
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
