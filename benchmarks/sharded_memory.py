"""Peak memory of each worker that trains a model in shares (fsdp), against one worker that holds all of it.

    python -m benchmarks.sharded_memory [--mode full|lora] [--gib 1] [--workers 2] [--work FOLDER]

A random Llama-like model of that many GiB in float32 is loaded, trained for two steps, kept as a checkpoint and saved,
by one process and then by several on gloo, as the training workers do it. Prints JSON: the peak of the resident memory
after each part, and the ratio of the several to the one, without what an idle process takes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.setup import ROOT, offline

_WIDTH, _INNER, _VOCABULARY = 1024, 4096, 8192
_PARTS = ("idle", "loaded", "trained", "kept", "saved")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["full", "lora"], default="full")
    parser.add_argument("--gib", type=float, default=1.0, help="the model's size in float32 (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where the model and what is made of it are put (default: scratch)")
    parser.add_argument("--rank", type=int, default=-1, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.rank >= 0:
        print("RESULT " + json.dumps(worker(options)), flush=True)
        return
    with tempfile.TemporaryDirectory(dir=options.work) as scratch:
        folder = Path(scratch)
        make_model(folder / "policy" / "model", options.gib)
        one, several = (measured(options, folder, count) for count in (1, options.workers))
    peaks = {part: [round(each[part], 3) for each in several] for part in _PARTS}
    ratio = max((each["saved"] - each["idle"]) / (one[0]["saved"] - one[0]["idle"]) for each in several)
    whole = max(each["saved"] / one[0]["saved"] for each in several)
    report = {
        "mode": options.mode, "gib": options.gib, "workers": options.workers,
        "one": {part: round(one[0][part], 3) for part in _PARTS}, "several": peaks,
        "ratio": round(whole, 3), "ratio_without_idle": round(ratio, 3),
    }  # fmt: skip
    print(json.dumps(report, indent=1))


def make_model(folder: Path, gib: float) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    layer = 2 * _WIDTH * (_WIDTH + _WIDTH // 4) + 3 * _WIDTH * _INNER
    layers = max(1, round((gib * 2**28 - _WIDTH * _VOCABULARY) / layer))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=_WIDTH, intermediate_size=_INNER, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=4, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def measured(options: argparse.Namespace, folder: Path, count: int) -> list[dict[str, float]]:
    """GiB by part, of each worker."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.sharded_memory", "--mode", options.mode, "--work", str(folder)]
    command += ["--workers", str(count), "--port", str(port)]
    running = [
        subprocess.Popen(
            [*command, "--rank", str(rank)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env=offline({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}),
        )
        for rank in range(count)
    ]  # fmt: skip
    found = []
    for process in running:
        said, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"a worker failed with exit code {process.returncode}")
        found.append(json.loads(next(line for line in said.splitlines() if line.startswith("RESULT "))[7:]))
    shutil.rmtree(folder / "made", ignore_errors=True)
    return found


def worker(options: argparse.Namespace) -> dict[str, float]:
    """One of the workers: the peak so far, in GiB, after each part."""
    import torch
    import torch.distributed as dist

    from stages.core.forward.logprobs import ResponseLogprobs, freeze
    from stages.io.allocator import keep_freed_memory, return_freed_memory
    from stages.train import checkpoints, save_shares
    from stages.train.bases import Bases, sharing
    from stages.train.checkpoints import TrainState
    from stages.train.config import TrainConfig
    from stages.train.policy import build_optimizer, save_policy, without_dropout
    from stages.train.sharding import distribute

    keep_freed_memory() if options.workers == 1 else return_freed_memory()
    cpu, initial, made = torch.device("cpu"), options.work / "policy", options.work / "made"
    if options.workers > 1:
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo"}
        address = f"tcp://127.0.0.1:{options.port}"
        dist.init_process_group("gloo", init_method=address, rank=options.rank, world_size=options.workers)
    config = TrainConfig.model_validate({"batch_size": 4, "lora": {"rank": 16} if options.mode == "lora" else None})
    peaks = {"idle": _peak()}
    torch.manual_seed(config.seed)
    built = sharing(config, initial, cpu) if options.workers > 1 else None
    if built is None:
        with Bases(keep=False).policy(config, initial, cpu) as whole:
            built = whole
    bare = ResponseLogprobs(freeze(built.model, config.precision), built.layout, config.precision)
    without_dropout(bare)
    model = distribute(bare, "fsdp", cpu)
    if built.shares is not None:
        built.shares.base.fill(cpu)
    peaks["loaded"] = _peak()
    optimizer = build_optimizer([p for p in model.parameters() if p.requires_grad], config)
    state = TrainState(bare, optimizer, 0, _train(model, optimizer, config, options, built.layout))
    peaks["trained"] = _peak()
    (made / "checkpoint").mkdir(parents=True, exist_ok=True)
    if built.shares is not None or options.rank == 0:
        checkpoints.save(state, made / "checkpoint")
    peaks["kept"] = _peak()
    if built.shares is not None:
        save_shares.save(built.shares, initial, made if options.rank == 0 else None)
    else:
        bare.release()
        save_policy(built.model, config, initial, made)
    peaks["saved"] = _peak()
    if options.workers > 1:
        dist.barrier()
        dist.destroy_process_group()
    return peaks


def _train(model: Any, optimizer: Any, config: Any, options: argparse.Namespace, layout: Any) -> list[dict[str, float]]:
    """Two steps on random pairs."""
    import torch

    from benchmarks.rondo_side import Pairs
    from stages.core.tokens.pair import EncodedPair
    from stages.train.loop import train_steps
    from stages.train.session import _all_sum
    from stages.train.worker import Worker

    draw = torch.Generator().manual_seed(0)
    rows = torch.randint(3, _VOCABULARY, (8, 3, 32), generator=draw).tolist()
    pairs = Pairs([EncodedPair(str(number), *row) for number, row in enumerate(rows)], list(range(8)))
    world = options.workers
    shared_out = Worker(options.rank, world, torch.device("cpu"), 256, _all_sum, world > 1)
    return list(train_steps(model, optimizer, pairs, config, shared_out, layout))


def _peak() -> float:
    """Of this program; what getrusage says may be the peak of the process that started it."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20


if __name__ == "__main__":
    main()
