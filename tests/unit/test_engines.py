from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from stages.base import StageError
from stages.generate import config as generate_config
from stages.generate import engines, serving
from stages.generate.config import RolloutConfig, choose_engine
from stages.generate.engine import Sample
from stages.generate.serving import Weights
from stages.generate.transformers_engine import TransformersEngine
from stages.generate.vllm_engine import VllmEngine
from stages.io.artifact import Artifact
from stages.io.filenames import ADAPTER, MODEL
from stages.policy.load import stop_tokens
from tests import artifacts, memory, tiny

EOS = 2
PROMPTS = [memory.random_pairs(1, seed=s)[0].prompt_ids for s in range(3)]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    tiny.save(folder / MODEL)
    return folder


def engine(policy: Path, **config: Any) -> TransformersEngine:
    settings = RolloutConfig(**{"engine": "transformers", "max_tokens": 8, **config})
    return TransformersEngine(settings, Weights(policy), cpus=1)


def policy_of(folder: Path, adapter: bool, fingerprint: str = "a" * 64) -> Artifact:
    """An artifact with a model's file and, it may be, an adapter's."""
    for name in (MODEL, *([ADAPTER] if adapter else [])):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text("{}")
    return artifacts.of_folder(folder, fingerprint)


def test_where_the_base_is_known_an_adapter_is_served_on_it(tmp_path: Path) -> None:
    weights = serving.weights_for(policy_of(tmp_path / "policy", True), policy_of(tmp_path / "base", False))
    assert weights.model == tmp_path / "base"
    assert weights.adapter == tmp_path / "policy" / ADAPTER


def test_an_adapters_name_changes_with_its_content(tmp_path: Path) -> None:
    base = policy_of(tmp_path / "base", False)
    names = [
        serving.weights_for(policy_of(tmp_path / "policy", True, fingerprint), base).adapter_name
        for fingerprint in ("a" * 64, "b" * 64, "a" * 64)
    ]
    assert names[0] == names[2]
    assert names[0] != names[1]
    assert names[0]


@pytest.mark.parametrize(
    ("adapter", "base"),
    [pytest.param(False, True, id="a full model"), pytest.param(True, False, id="the base is not known, or no GPU")],
)
def test_otherwise_the_whole_model_is_served(tmp_path: Path, adapter: bool, base: bool) -> None:
    policy = policy_of(tmp_path / "policy", adapter)
    given = policy_of(tmp_path / "base", False) if base else None
    assert serving.weights_for(policy, given) == Weights(tmp_path / "policy")


@pytest.mark.parametrize(("installed", "expected"), [(True, "vllm"), (False, "transformers")])
def test_auto_takes_vllm_where_it_is_installed(installed: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_config, "find_spec", lambda name: object() if installed else None)
    assert choose_engine("auto") == expected
    assert choose_engine("vllm") == "vllm"
    assert choose_engine("transformers") == "transformers"


def test_the_environment_keeps_engines_offline_and_within_their_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    cpu = serving.environment(RolloutConfig(engine="vllm"), gpu=False)
    gpu = serving.environment(RolloutConfig(engine="vllm"), gpu=True)
    plain = serving.environment(RolloutConfig(engine="transformers"), gpu=False)
    assert all(env["HF_HUB_OFFLINE"] == "1" for env in (cpu, gpu, plain))
    assert cpu["VLLM_ENABLE_V1_MULTIPROCESSING"] == gpu["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert int(cpu["VLLM_CPU_KVCACHE_SPACE"]) > 0
    assert "VLLM_CPU_KVCACHE_SPACE" not in gpu
    assert not any(name.startswith("VLLM") for name in plain)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    assert serving.environment(RolloutConfig(engine="vllm"), gpu=False)["VLLM_CPU_KVCACHE_SPACE"] == "7"


def test_a_spec_that_says_transformers_gets_it(policy: Path) -> None:
    assert isinstance(engines.make(RolloutConfig(engine="transformers"), Weights(policy), 1), TransformersEngine)


def test_every_prompt_gets_its_samples(policy: Path) -> None:
    answers = engine(policy, samples=3).generate(PROMPTS)
    assert [len(samples) for samples in answers] == [3, 3, 3]
    assert all(0 < len(sample.token_ids) <= 8 for samples in answers for sample in samples)
    texts = {tuple(sample.token_ids) for sample in answers[0]}
    assert len(texts) > 1


def test_sampling_repeats_with_its_seed(policy: Path) -> None:
    first, again, other = (engine(policy, seed=seed).generate(PROMPTS) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_greedy_answers_are_the_likeliest_tokens(policy: Path) -> None:
    """Token by token: the one with the highest logit, until the end of the turn."""
    answers = engine(policy, samples=2, temperature=0).generate(PROMPTS)
    model = tiny.model().eval()
    for prompt, samples in zip(PROMPTS, answers, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 8 and (len(ids) == len(prompt) or ids[-1] != EOS):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert [sample.token_ids for sample in samples] == [ids[len(prompt) :]] * 2


def test_padding_does_not_change_greedy_answers(policy: Path) -> None:
    subject = engine(policy, samples=1, temperature=0)
    assert len({len(prompt) for prompt in PROMPTS}) > 1
    assert subject.generate(PROMPTS) == [subject.generate([prompt])[0] for prompt in PROMPTS]


def test_finish_reasons_and_the_end_of_turn(policy: Path) -> None:
    """A hot, random model ends some turns within 200 tokens of 259, and not others."""
    samples = [s for answer in engine(policy, samples=16, temperature=5.0, max_tokens=200).generate(PROMPTS[:1])
               for s in answer]  # fmt: skip
    assert {sample.finish_reason for sample in samples} == {"stop", "length"}
    for sample in samples:
        if sample.finish_reason == "stop":
            assert sample.token_ids.index(EOS) == len(sample.token_ids) - 1
        else:
            assert EOS not in sample.token_ids
            assert len(sample.token_ids) == 200


@pytest.mark.parametrize("named", [None, 7, [7, 8]])
def test_answers_end_where_the_template_ends_them(named: object, tmp_path: Path) -> None:
    """A base model with a chat template: its end of sequence is another token."""
    tiny.save(tmp_path / MODEL)
    tokenizer = json.loads((tmp_path / MODEL / "tokenizer_config.json").read_text())
    (tmp_path / MODEL / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "eos_token": "<|endoftext|>"}))
    config = json.loads((tmp_path / MODEL / "config.json").read_text())
    (tmp_path / MODEL / "config.json").write_text(json.dumps({**config, "eos_token_id": 0}))
    (tmp_path / MODEL / "generation_config.json").unlink()
    if named is not None:
        (tmp_path / MODEL / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    others = named if isinstance(named, list) else [named] if named else []
    assert stop_tokens(tmp_path) == [0, EOS, *others]
    assert engine(tmp_path).ends == stop_tokens(tmp_path)


def test_an_end_of_turn_as_the_last_allowed_token_is_a_stop(policy: Path) -> None:
    subject = engine(policy, samples=1, temperature=0)
    subject.ends = [subject.generate(PROMPTS[:1])[0][0].token_ids[0]]
    assert subject.generate(PROMPTS[:1]) == [[Sample(subject.ends, "stop")]]


def test_an_adapter_is_served_on_its_base(policy: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = LoraConfig(r=8, target_modules=["q_proj", "o_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(tiny.model(), settings)
    adapted.save_pretrained(tmp_path / ADAPTER)
    adapted.merge_and_unload().save_pretrained(tmp_path / MODEL)
    tiny.tokenizer().save_pretrained(tmp_path / MODEL)
    config = RolloutConfig(engine="transformers", samples=1, temperature=0, max_tokens=12)
    served = TransformersEngine(config, Weights(policy, tmp_path / ADAPTER, "a"), 1).generate(PROMPTS)
    assert served == TransformersEngine(config, Weights(tmp_path), 1).generate(PROMPTS)
    assert served != TransformersEngine(config, Weights(policy), 1).generate(PROMPTS)


class _Params:
    """Sampling parameters that refuse what vLLM's refuse."""

    def __init__(self, n: int, temperature: float, **options: Any) -> None:
        assert options["output_kind"] == "final"
        if temperature == 0 and n > 1:
            raise ValueError(f"n must be 1 when using greedy sampling, got {n}.")
        self.n = n
        self.stop_token_ids = options["stop_token_ids"]

    def clone(self) -> _Params:
        return self


class _LLM:
    """Answers every prompt with its own tokens, the last that was added first."""

    def __init__(self, **options: Any) -> None:
        assert Path(options["model"]).is_absolute()
        torch.set_num_threads = lambda count: None  # as vLLM's worker on a CPU does
        scheduler = SimpleNamespace(max_num_seqs=options["max_num_seqs"])
        self.llm_engine, self.vllm_config = self, SimpleNamespace(scheduler_config=scheduler)
        self.renderer = SimpleNamespace(render_cmpl=lambda prompts: prompts)
        self.options, self.asked = options, []

    def add_request(self, name: str, prompt: dict[str, Any], params: _Params, lora_request: Any) -> None:
        sample = SimpleNamespace(token_ids=prompt["prompt_token_ids"], finish_reason="stop")
        self.asked.append(SimpleNamespace(request_id=name, outputs=[sample] * params.n, finished=True))

    def step(self) -> list[Any]:
        return [SimpleNamespace(request_id=self.asked[0].request_id, finished=False), self.asked.pop()]


@dataclass
class _Args:
    max_num_seqs: int = 0
    quantization: str = ""


def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY="final"))
    vllm = SimpleNamespace(LLM=_LLM, SamplingParams=_Params, EngineArgs=_Args)
    lora = SimpleNamespace(LoRARequest=SimpleNamespace)
    for name, module in {"": vllm, ".lora": None, ".lora.request": lora, ".sampling_params": kinds}.items():
        monkeypatch.setitem(sys.modules, f"vllm{name}", module or SimpleNamespace())


def test_vllms_own_settings_are_handed_on(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm(monkeypatch)
    monkeypatch.setattr(torch, "set_num_threads", torch.set_num_threads)
    config = RolloutConfig(engine="vllm", engine_options={"max_num_seqs": 7, "quantization": "fp8"})
    vllm = engines.make(config, Weights(policy), torch.get_num_threads(), gpus=2)
    assert isinstance(vllm, VllmEngine)
    assert vllm.room == 7
    assert {name: vllm.llm.options[name] for name in ("quantization", "tensor_parallel_size")} == {
        "quantization": "fp8", "tensor_parallel_size": 2,
    }  # fmt: skip


def test_engines_that_share_a_gpu_take_their_part_of_its_memory(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm(monkeypatch)
    monkeypatch.setattr(torch, "set_num_threads", torch.set_num_threads)
    shared = engines.make(RolloutConfig(engine="vllm"), Weights(policy), torch.get_num_threads(), gpus=0.5)
    assert isinstance(shared, VllmEngine)
    assert shared.llm.options["gpu_memory_utilization"] == pytest.approx(0.46)
    assert "tensor_parallel_size" not in shared.llm.options


def test_a_batch_of_transformers_is_never_larger_than_its_room(policy: Path) -> None:
    small = engine(policy, samples=3)
    small.room = 7
    for key, prompt in enumerate([*PROMPTS, *PROMPTS][:5]):
        small.add(key, prompt)
    assert [[key for key, _ in small.step()] for _ in range(4)] == [[0, 1], [2, 3], [4], []]


def test_a_setting_that_vllm_does_not_have_is_named_with_the_closest(
    policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_vllm(monkeypatch)
    config = RolloutConfig(engine="vllm", engine_options={"max_nun_seqs": 7})
    with pytest.raises(StageError, match=r"no setting max_nun_seqs; did you mean max_num_seqs\?"):
        engines.make(config, Weights(policy), 1)
    with pytest.raises(StageError, match=r"engine_options are those of vLLM, and the engine is transformers"):
        engines.make(config.model_copy(update={"engine": "transformers"}), Weights(policy), 1)


@pytest.mark.parametrize("name", ["model", "trust_remote_code", "tensor_parallel_size", "max_model_len", "worker_cls"])
def test_settings_that_have_another_place_are_refused_with_it(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is not set here: "):
        RolloutConfig(engine_options={name: 1})


def test_only_settings_that_can_change_a_text_are_part_of_the_identity() -> None:
    room = RolloutConfig(engine_options={"max_num_seqs": 7, "gpu_memory_utilization": 0.5})
    texts = RolloutConfig(engine_options={"max_num_seqs": 7, "quantization": "fp8"})
    assert room.identity() == RolloutConfig().identity() == {}
    assert texts.identity() == {"engine_options": {"quantization": "fp8"}}
    assert room.sampling() == RolloutConfig().sampling()
    assert texts.sampling() == {**RolloutConfig().sampling(), "engine_options": {"quantization": "fp8"}}
    assert "engine" not in texts.sampling()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_vllm_gives_every_prompt_its_samples(policy: Path, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm(monkeypatch)
    config = RolloutConfig(engine="vllm", samples=2, temperature=temperature)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", torch.set_num_threads)  # put back whatever happens
    vllm = engines.make(config, Weights(policy), threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert torch.get_num_threads() == threads
    assert isinstance(vllm, VllmEngine)
    assert vllm.room == 128
    assert vllm.params.stop_token_ids == [EOS]
    answers = vllm.generate(PROMPTS)
    assert answers == [[Sample(prompt, "stop")] * 2 for prompt in PROMPTS]
