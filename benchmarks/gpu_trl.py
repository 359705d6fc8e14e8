"""TRL's side of ``gpu``: its DPOTrainer at its best settings, in one process that is given task after task.

Needs TRL beside torch, transformers and peft, as ``trl_side`` does.
"""

from __future__ import annotations

import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.gpu_setup import (
    END,
    LORA,
    SIZES,
    Size,
    clock,
    peak_memory,
    random_model,
    random_pairs,
    reset_peak,
)  # fmt: skip
from stages.core.tokens.pair import EncodedPair

_ROOT = Path(__file__).parents[1]
_END = "<end>"


def micro_batch(pairs: Sequence[EncodedPair], batch_size: int, tokens: int) -> int:
    """Pairs of a forward pass: as many as surely take no more than ``tokens``, in equal parts of a step."""
    longest = max(len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs)
    return max(n for n in range(1, batch_size + 1) if batch_size % n == 0 and (n == 1 or 2 * n * longest <= tokens))


def words(vocabulary: int) -> Any:
    """A tokenizer to which a text of numbers is the tokens of these numbers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    table = {_END: END, **{str(number): number for number in range(1, vocabulary)}}
    raw = Tokenizer(models.WordLevel(table, unk_token=_END))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=_END, pad_token=_END)


def row(pair: EncodedPair) -> dict[str, Any]:
    """A pair as TRL reads it. It would end the answers itself if they had no end."""
    prompt, chosen, rejected = pair.prompt_ids, pair.chosen_ids, pair.rejected_ids
    return {
        "prompt": " ".join(map(str, prompt)), "chosen": _answer(chosen), "rejected": _answer(rejected),
        "length": len(prompt) + max(len(chosen), len(rejected)),
    }  # fmt: skip


def _answer(ids: Sequence[int]) -> str:
    return "".join(f" {_END if number == END else number}" for number in ids)


def settings(device: torch.device) -> dict[str, Any]:
    """What there is here of what makes TRL faster."""
    flash = device.type == "cuda" and find_spec("flash_attn") is not None
    liger = device.type == "cuda" and find_spec("liger_kernel") is not None
    return {"attention": "flash_attention_2" if flash else "sdpa", "padding_free": flash, "liger": liger}


def trainer_of(size: Size, task: Mapping[str, Any], scratch: str, device: torch.device, clocks: Any) -> Any:
    """A DPOTrainer that goes over the pairs several times, with the reference's log-probabilities computed."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    from benchmarks.trl_side import best_settings

    best, lora = settings(device), task["mode"] == "lora"
    vocabulary = size.model["vocab_size"]
    pairs = random_pairs(task["lengths"], task["steps"] * task["batch_size"], vocabulary, size.shorter)
    micro = task["micro_batch"] or micro_batch(pairs, task["batch_size"], task["micro_batch_tokens"])
    config = DPOConfig(
        **best_settings(scratch, micro, task["batch_size"], bf16=True), num_train_epochs=1 + task["passes"],
        max_length=4096, beta=0.1,
        learning_rate=1e-6, lr_scheduler_type="constant", precompute_ref_log_probs=True,
        padding_free=best["padding_free"], use_liger_kernel=best["liger"],
        train_sampling_strategy="group_by_length", remove_unused_columns=False,
    )  # fmt: skip
    # A frozen base is held in the products' precision, as Rondo holds it; trained weights are float32 on both sides.
    dtype = torch.bfloat16 if lora else torch.float32
    return DPOTrainer(
        model=random_model(size.model, device, dtype, best["attention"]), args=config,
        train_dataset=Dataset.from_list([row(pair) for pair in pairs]), processing_class=words(vocabulary),
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM") if lora else None, callbacks=[clocks],
    )  # fmt: skip


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """One training, of which all passes but the first are timed, as on Rondo's side."""
    from transformers import TrainerCallback

    device, size = torch.device(task["device"]), SIZES[task["size"]]
    ends, marks = (task["steps"], (1 + task["passes"]) * task["steps"]), []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step in ends:
                marks.append(clock(device))

    with tempfile.TemporaryDirectory() as scratch:
        reset_peak(device)
        trainer = trainer_of(size, task, scratch, device, Clock())
        reset_peak(device)
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "seconds_per_pass": (marks[1] - marks[0]) / task["passes"], "peak_memory_gib": peak_memory(device),
        "first_loss_from_log_2": losses[0] - math.log(2), "last_loss": losses[-1],
        "micro_batch": trainer.args.per_device_train_batch_size,
        **settings(device), "padding_free": getattr(trainer, "padding_free", False),
    }  # fmt: skip


class NoTrl(Exception):
    """TRL's process cannot do what was asked of it, or has ended."""


class Trl:
    """TRL's process, from the other side. It imports in the background, until the first task."""

    def __init__(self) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["HF_DATASETS_CACHE"] = os.path.join(tempfile.gettempdir(), f"rondo-gpu-{os.getpid()}")
        program = [sys.executable, "-m", "benchmarks.gpu_trl"]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - is open as long as the process
        self._process = subprocess.Popen(
            program, cwd=_ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            text=True,
        )  # fmt: skip
        self._answers: queue.Queue[str | None] = queue.Queue()
        assert self._process.stdout is not None
        threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            if line.startswith("RESULT "):
                self._answers.put(line.removeprefix("RESULT "))
        self._answers.put(None)

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next thing that the process says.

        Raises:
            NoTrl: it says that it failed, says nothing for so long, or has ended.
        """
        try:
            line = self._answers.get(timeout=max(seconds, 1.0))
        except queue.Empty:
            self.end()
            raise NoTrl(f"no answer in {seconds:.0f} s") from None
        if line is None:
            self._errors.seek(0)
            raise NoTrl(f"the process has ended: {self._errors.read()[-500:].strip()}")
        found: dict[str, Any] = json.loads(line)
        if "failed" in found:
            raise NoTrl(found["failed"])
        return found

    def ask(self, task: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Have a task done, see ``answer``."""
        if self._process.poll() is not None:
            raise NoTrl("the process has ended")
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return self.answer(seconds)

    def end(self) -> None:
        """End the process; more than once does no harm."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Do the tasks of standard input, JSON a line, and say how each went in a line of standard output."""
    from benchmarks.gpu_rondo import said

    stdout, sys.stdout = sys.stdout, sys.stderr

    def tell(what: Mapping[str, Any]) -> None:
        print("RESULT " + json.dumps(what), file=stdout, flush=True)

    try:
        import datasets  # noqa: F401
        import trl
    except Exception as error:
        tell({"failed": f"not importable: {said(error)}"})
        return
    tell({"version": trl.__version__})
    for line in sys.stdin:
        task = json.loads(line)
        try:
            found = measure(task)
        except Exception as error:  # told to whoever asked
            found = {"failed": said(error)}
        reset_peak(torch.device(task["device"]))  # the other side needs the memory
        tell(found)


if __name__ == "__main__":
    main()
