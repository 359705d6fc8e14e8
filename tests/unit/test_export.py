"""A champion leaves the store: what stands in its folder, what its card and its lineage say, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.report import card
from pipelines.run.champions import Champions
from pipelines.run.lineage import Lineage
from pipelines.run.store import ArtifactStore, Manifest
from stages.catalog import STAGES
from tests.s3 import bucket

FILES = ("config.json", "model.safetensors", "tokenizer.json")
RATE = {"mean": 0.75, "low": 0.6, "high": 0.9, "prompts": 40}
VERSIONS = {each.name: each.version for each in STAGES}
PRODUCES = {"materialise": "policy", "train": "policy", "promote": "policy"}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


class Made:
    """Small committed artifacts, as runs make them."""

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self.count = 0

    def __call__(
        self, stage: str, key: str = "", config: Any = None, summary: Any = None, files: tuple[str, ...] = (),
        attempt: str = "", **inputs: Manifest | str,
    ) -> Manifest:  # fmt: skip
        """Inputs are artifacts, or fingerprints of a user's files."""
        self.count += 1
        given = {name.replace("_0", ".0"): value for name, value in inputs.items()}
        made_from = {name: value["attempt"] for name, value in given.items() if isinstance(value, dict)}
        output = self.store.output(f"{self.count:02d}{stage}".ljust(64, "0"), made_from)
        with output.part("part") as part:
            for name in files:
                (part.folder / name).parent.mkdir(exist_ok=True)
                (part.folder / name).write_text(f"{name} of {self.count}")
        payload = {
            "stage": stage, "version": VERSIONS.get(stage, 1), "config": config or {},
            "inputs": {name: each if isinstance(each, str) else each["fingerprint"] for name, each in given.items()},
        }  # fmt: skip
        document = {
            "key": key, "produces": PRODUCES.get(stage, "x"), "payload": payload, "made_from": made_from,
            "summary": summary or {}, "seconds": 1.0, "rondo": "0.1.0",
        }  # fmt: skip
        made = self.store.commit(output, document)
        return {**made, "place": output.inputs}

    def base(self, **config: Any) -> Manifest:
        summary = {"parameters": 1234, "source": config.get("hub", "my-model"), "revision": config.get("revision")}
        files = tuple(f"model/{name}" for name in FILES)
        return self("materialise", "base", config, summary, files, **({} if config else {"source": "ab" * 32}))

    def trained(self, policy: Manifest, beta: float = 0.2, extra: tuple[str, ...] = ()) -> Manifest:
        pairs = self("ingest", "preferences/pairs.jsonl", {"kind": "pairs"}, {"rows": 50}, files_0="cd" * 32)
        chosen = self("curate", summary={"pairs": 50, "training": 40, "heldout": 10}, pairs_0=pairs)
        shards = self("prepare", summary={"pairs": 40}, selection=chosen)
        config = {"beta": beta, "learning_rate": 0.001, "lora": {"rank": 4}}
        summary = {"loss": 0.5, "reward_accuracy": 0.9, "kl": 0.1}
        files = (*(f"model/{name}" for name in FILES), "metrics.jsonl", *extra)
        return self("train", "round-1/train", config, summary, files, policy=policy, shards=shards)

    def answered(self, policy: Manifest) -> Manifest:
        asked = self("ingest", "heldout", {"kind": "prompts"}, {"rows": 40}, files_0="ef" * 32)
        return self("rollout", policy=policy, prompts=asked)

    def judged(self, answers: Manifest) -> Manifest:
        return self("judge", config={"judge": {"use": "sentiment"}}, rollouts=answers)

    def evaluated(self, policy: Manifest, baseline: Manifest) -> Manifest:
        against = {"length_controlled": {"mean": 0.625}, "length_ratio": 1.5}
        summary = {
            "win_rate": RATE, "judge_score": 0.5, "baseline_score": 0.25, "baseline": "base",
            "against": {"base": against},
        }  # fmt: skip
        ours, theirs = self.answered(policy), self.answered(baseline)
        inputs = {"policy": ours, "judged": self.judged(ours), "baseline.base": theirs}
        return self("evaluate", summary=summary, **inputs, **{"baseline_judged.base": self.judged(theirs)})

    def champion(self, policy: Manifest, reason: str = "better", name: str = "nightly", **more: Any) -> None:
        Champions(self.store, name).move(policy["fingerprint"], policy["place"], reason, **more)


@pytest.fixture
def made(store: ArtifactStore) -> Made:
    return Made(store)


def export(store: ArtifactStore, folder: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, [*("export", "--store", store.location, "--to", str(folder)), *arguments])


def exported(store: ArtifactStore, folder: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    """The card and the lineage."""
    done = export(store, folder, *(arguments or ("nightly",)))
    assert done.exit_code == 0, done.output
    return (folder / "README.md").read_text("utf-8"), json.loads((folder / "rondo.json").read_text("utf-8"))


def files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def test_the_model_stands_at_the_top_beside_its_card_and_lineage(
    store: ArtifactStore, made: Made, tmp_path: Path
) -> None:
    made.champion(made.trained(made.base()))
    done = export(store, tmp_path / "out", "nightly")
    assert f'AutoModelForCausalLM.from_pretrained("{tmp_path / "out"}")' in done.output
    assert files(tmp_path / "out") == ["README.md", "config.json", "model.safetensors", "rondo.json", "tokenizer.json"]
    assert (tmp_path / "out/config.json").read_text() == f"model/config.json of {made.count}"
    assert not (tmp_path / "out.part").exists()


def test_programs_get_one_object(store: ArtifactStore, made: Made, tmp_path: Path) -> None:
    made.champion(made.base())
    document = json.loads(export(store, tmp_path / "out", "nightly", "--json").stdout)
    assert document["champion"] == "nightly@1"
    assert document["folder"] == str(tmp_path / "out")
    assert document["files"] == files(tmp_path / "out")


def test_the_card_tells_what_the_manifests_tell(store: ArtifactStore, made: Made, tmp_path: Path) -> None:
    base = made.base(hub="some/model", revision="a" * 40)
    policy = made.trained(base)
    made.evaluated(policy, base)
    scored = made("reference", policy=policy)
    made("heldout", summary={"pairs": 10, "loss": 0.6, "reward_accuracy": 0.8}, policy=scored)
    made.champion(policy, "won", run="run-1")
    text, lineage = exported(store, tmp_path / "out")
    assert ModelCard(text).data.to_dict() == {
        "base_model": "some/model", "library_name": "transformers", "pipeline_tag": "text-generation",
        "tags": ["dpo", "rondo", "lora"],
    }  # fmt: skip
    for line in (
        "Why it became champion: won",
        f"- some/model at revision {'a' * 40}",
        "- preferences pairs.jsonl (cdcdcdcdcdcdcdcd): 50 pairs",
        "- held-out prompts (efefefefefefefef): 40 prompts",
        "- chosen of 50 given pairs: 40 pairs to train on, 10 held out",
        "| 1 | round-1/train | sigmoid | 0.2 | 0.001 | 32 | LoRA, rank 4 | 40 | 0.5 | 0.9 | 0.1 |",
        "- round 1 against the base model: win rate 0.75 (0.6 to 0.9, 95% interval) on 40 prompts; 0.625 with length "
        "controlled, its answers being 1.50 times as long, judged by sentiment; mean score 0.25 before, 0.5 now",
        "- round 1 on 10 held-out pairs: loss 0.6, reward accuracy 0.8",
        "- Rondo 0.1.0",
    ):
        assert line in text.splitlines()
    assert lineage["run"] == "run-1"
    assert lineage["champion"]["reason"] == "won"


def test_the_lineage_has_inputs_before_users_and_what_was_measured(
    store: ArtifactStore, made: Made, tmp_path: Path
) -> None:
    base = made.base()
    policy = made.trained(base)
    evaluation = made.evaluated(policy, base)
    other = made.trained(base, beta=0.9)
    made.evaluated(other, policy)  # this is of another policy
    made.champion(policy)
    _, lineage = exported(store, tmp_path / "out")
    seen: set[str] = set()
    for each in lineage["artifacts"]:
        artifacts = {each["inputs"][name] for name in each["made_from"]}
        assert artifacts <= seen, each
        seen.add(each["fingerprint"])
    assert seen >= {policy["fingerprint"], base["fingerprint"], evaluation["fingerprint"]}
    assert other["fingerprint"] not in seen
    assert [each["stage"] for each in lineage["artifacts"]].count("evaluate") == 1
    assert {each["fingerprint"] for each in lineage["files"]} == {"ab" * 32, "cd" * 32, "ef" * 32}
    assert lineage["missing"] == []


def test_a_champion_that_was_trained_from_others_names_them(store: ArtifactStore, made: Made, tmp_path: Path) -> None:
    base = made.base()
    first = made.trained(base)
    made.champion(first, "the first")
    second = made.trained(first)
    made.champion(second, "the second", name="other")
    third = made.trained(second)
    made.evaluated(third, second)
    made.champion(third, "the third")
    text, lineage = exported(store, tmp_path / "out")
    chain = [(each["champion"], each["reason"]) for each in lineage["champions_before"]]
    assert chain == [("other@1", "the second"), ("nightly@1", "the first")]
    assert "- my-model\n" in text
    assert "against champion other@1" in text
    assert len(lineage["rounds"]) == 3
    earlier, document = exported(store, tmp_path / "earlier", "nightly@1")
    assert "# nightly, champion 1" in earlier
    assert (len(document["rounds"]), document["champions_before"]) == (1, [])


def test_the_card_names_an_ensemble(store: ArtifactStore, made: Made, tmp_path: Path) -> None:
    base = made.base()
    policy = made.trained(base)
    ours, theirs = made.answered(policy), made.answered(base)
    voted = made("vote", **{"judged.0": made.judged(ours), "against.0": made.judged(theirs)})
    inputs = {"policy": ours, "baseline.base": theirs, "verdicts.base": voted}
    made("evaluate", summary={"win_rate": RATE, "baseline": "base"}, **inputs)
    made.champion(policy)
    assert "judged by ensemble" in exported(store, tmp_path / "out")[0]


def test_a_gate_let_the_earlier_one_through(store: ArtifactStore, made: Made, tmp_path: Path) -> None:
    base = made.base()
    first = made.trained(base)
    one = made("promote", summary={"promoted": True}, candidate=first, champion=base,
               evaluation=made.evaluated(first, base))  # fmt: skip
    loser = made.trained(one)
    again = made("promote", summary={"promoted": False}, candidate=loser, champion=one,
                 evaluation=made.evaluated(loser, base), files=tuple(f"model/{name}" for name in FILES))  # fmt: skip
    made.champion(again)
    text, lineage = exported(store, tmp_path / "out")
    assert [(each["used"], each["promoted"]) for each in lineage["rounds"]] == [(True, True), (False, False)]
    assert [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith(("| 1", "| 2"))] == [
        "promoted", "not promoted, no part of this model",
    ]  # fmt: skip
    assert "Champions before" not in text


def test_another_attempt_at_an_input_is_no_part_of_it(store: ArtifactStore, made: Made) -> None:
    base = made.base()
    policy = made.trained(base)
    place = Path(store.location, "artifacts", base["fingerprint"], base["place"], "manifest.json")
    place.write_text(place.read_text().replace(base["attempt"], "another"))
    lineage = Lineage(store, policy)
    assert base["fingerprint"] not in {each["fingerprint"] for each in lineage.artifacts}
    assert lineage.missing() == [{"fingerprint": base["fingerprint"], "attempt": base["attempt"]}]


def test_what_was_deleted_is_not_made_up(store: ArtifactStore, made: Made, tmp_path: Path) -> None:
    base = made.base()
    made.champion(made.trained(base), evidence={"win_rate": RATE})
    store.store.remove(f"artifacts/{base['fingerprint']}")
    text, lineage = exported(store, tmp_path / "out")
    assert "Base model" not in text
    assert "base_model" not in text
    assert "1 more were deleted" in text
    assert "- when it became champion: win rate 0.75 (0.6 to 0.9) on 40 prompts" in text
    assert lineage["base"] is None


def test_a_rollback_tells_why_and_what_it_restores(store: ArtifactStore, made: Made, tmp_path: Path) -> None:
    made.champion(made.base(), "the first", run="run-1", evidence={"win_rate": RATE})
    made.champion(made.base(), "the second")
    Champions(store, "nightly").roll_back(1, "users complained")
    text, lineage = exported(store, tmp_path / "out")
    assert "Why it became champion: users complained" in text
    assert "It restores champion 1: the first" in text
    assert "win rate 0.75" in text
    assert (lineage["run"], lineage["champions_before"]) == ("run-1", [])


def test_what_people_wrote_adds_no_markup(store: ArtifactStore, made: Made, tmp_path: Path) -> None:
    reason = "<script>alert(1)</script> | **bold**\n# title\n---\n[x](http://y) \u202e`"
    judged = made("judge", config={"judge": {"use": "m:J", "options": {"say": "a\n```\n<b>now</b>"}}})
    base = made.base()
    policy = made(
        "train", "round-1 | <i>", {"loss": "<b>|"}, {"loss": 0.1}, ("model/config.json",), policy=base, x=judged
    )
    made.champion(policy, reason)
    text, lineage = exported(store, tmp_path / "out")
    assert lineage["champion"]["reason"] == reason
    outside = re.sub(r"(?ms)^(`{3,})\w*\n.*?^\1$", "", text)
    assert not re.search(r"<\w|</|\u202e", outside)
    assert r"\*\*bold\*\* # title --- \[x\](http://y) \`" in outside
    head, rule, row = [line for line in outside.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in (head, rule, row)}) == 1
    fenced = re.search(r"(?ms)^(`{4,})yaml\n(.*?)^\1$", text)
    assert fenced
    assert yaml.safe_load(fenced[2])["judge"]["judge"]["options"]["say"] == "a\n```\n<b>now</b>"


def test_nothing_of_this_machine_goes_out(store: ArtifactStore, made: Made, tmp_path: Path) -> None:
    options = {
        "file": "/home/me/secret-project/words.txt", "api_key": "abcdef", "uri": "s3://me:word@bucket/x",
        "text": f"see file://{store.location}/artifacts/x", "hub": "hf_" + "a" * 20, "name": "org/model",
        "address": "https://host/path/y",
    }  # fmt: skip
    judged = made("judge", config={"judge": {"use": "m:J", "options": options}}, summary={"annotators": ["Ann"]})
    policy = made("train", summary={"losses": [0.1] * 50}, files=("model/config.json",), policy=made.base(), x=judged)
    made.champion(policy, f"tried in {tmp_path}/there with sk-{'b' * 20}")
    text, lineage = exported(store, tmp_path / "out")
    for written in (text, json.dumps(lineage)):
        for hidden in (str(tmp_path), store.location, "/home/me", "abcdef", "word@", "hf_", "sk-", "Ann"):
            assert hidden not in written
        assert f'"{socket.gethostname()}"' not in written
    (found,) = (each for each in lineage["artifacts"] if each["stage"] == "judge")
    kept = found["config"]["judge"]["options"]
    assert (kept["file"], kept["name"], kept["address"]) == ("words.txt", "org/model", "https://host/path/y")
    assert lineage["artifacts"][-1]["summary"] == {}


def test_a_second_export_is_the_same(store: ArtifactStore, made: Made, tmp_path: Path) -> None:
    base = made.base()
    policy = made.trained(base)
    for _ in range(3):
        made.evaluated(policy, base)
    made.champion(policy)
    for name in ("one", "two"):
        exported(store, tmp_path / name)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    for name in files(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize(("kind", "goes"), [("PROMPT_TUNING", True), ("IA3", False)])
def test_an_adapter_goes_along_where_the_model_is_not_whole_without(
    store: ArtifactStore, made: Made, tmp_path: Path, kind: str, goes: bool
) -> None:
    output = store.output("ab", {})
    with output.part("policy") as part:
        for name, text in {
            "model/config.json": "{}",
            "adapter/adapter_config.json": f'{{"peft_type": "{kind}"}}',
        }.items():
            (part.folder / name).parent.mkdir()
            (part.folder / name).write_text(text)
    store.commit(output, {"produces": "policy", "summary": {}, "payload": {"stage": "train"}, "seconds": 1.0})
    Champions(store, "nightly").put("ab", "try")
    done = export(store, tmp_path / "out", "nightly")
    assert ("adapter/adapter_config.json" in files(tmp_path / "out")) == goes
    assert ("PeftModel" in done.output) == goes
    assert ("PeftModel" in (tmp_path / "out/README.md").read_text()) == goes


def test_the_card_of_the_base_makes_room(store: ArtifactStore, made: Made, tmp_path: Path) -> None:
    made.champion(made("materialise", files=("model/README.md", "model/rondo.json", "model/LICENSE")))
    text, _ = exported(store, tmp_path / "out")
    assert "# nightly, champion 1" in text
    assert files(tmp_path / "out") == ["LICENSE", "README.md", "base/README.md", "base/rondo.json", "rondo.json"]


def test_an_empty_folder_and_a_begun_one_are_taken(store: ArtifactStore, made: Made, tmp_path: Path) -> None:
    made.champion(made.base())
    (tmp_path / "out").mkdir()
    (tmp_path / "out.part").mkdir()
    for name in (".rondo-export", "half.safetensors"):
        (tmp_path / "out.part" / name).touch()
    exported(store, tmp_path / "out")
    assert "half.safetensors" not in files(tmp_path / "out")
    assert not (tmp_path / "out.part").exists()


@pytest.mark.parametrize(
    ("arguments", "there", "message"),
    [
        (("nightly",), "out/mine.txt", "is not empty"),
        (("nightly",), "out", "is a file"),
        (("nightly",), "out.part/mine.txt", "is in the way"),
        (("nightly",), "out.part", "is in the way"),
        (("nigthly",), "x", 'did you mean "nightly"'),
        (("nightly@7",), "x", "there are 1"),
        (("Nightly!",), "x", "no pipeline's name"),
    ],
)
def test_what_is_refused_is_one_message_and_changes_nothing(
    store: ArtifactStore, made: Made, tmp_path: Path, arguments: tuple[str, ...], there: str, message: str
) -> None:
    made.champion(made.base())
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).write_text("mine")
    before = [name for name in files(tmp_path) if not name.startswith("store/locks")]
    done = export(store, tmp_path / "out", *arguments)
    assert (done.exit_code, message in done.output, done.stdout) == (2, True, ""), done.output
    assert len(done.output.splitlines()) == 1
    assert [name for name in files(tmp_path) if not name.startswith("store/locks")] == before


def test_a_policy_that_was_deleted_or_damaged(store: ArtifactStore, made: Made, tmp_path: Path) -> None:
    base = made.base()
    made.champion(base)
    (weights,) = Path(store.location, "artifacts", base["fingerprint"]).rglob("model.safetensors")
    weights.write_text("short")
    done = export(store, tmp_path / "out", "nightly")
    assert (done.exit_code, "is damaged (model/model.safetensors)" in done.output) == (2, True)
    store.store.remove(f"artifacts/{base['fingerprint']}")
    done = export(store, tmp_path / "out", "nightly")
    assert (done.exit_code, "the policy of nightly@1 was deleted" in done.output) == (2, True)
    assert not list(tmp_path.glob("out*"))


def test_out_of_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RONDO_CACHE", str(tmp_path / "cache"))
    with bucket() as kept:
        store = ArtifactStore(f"s3://{kept.name}/results")
        made = Made(store)
        policy = made.trained(made.base())
        made.champion(policy, f"in s3://key:secret@{kept.name}/results/artifacts")
        shutil.rmtree(tmp_path / "cache")  # as on another machine
        _, lineage = exported(store, tmp_path / "out")
    assert (tmp_path / "out/config.json").read_text() == f"model/config.json of {made.count}"
    assert lineage["champion"]["reason"] == "in the store/artifacts"


def test_a_long_way_back(store: ArtifactStore, made: Made) -> None:
    policy = made.base()
    for _ in range(1200):
        policy = made("train", policy=policy)
    assert len(Lineage(store, policy).artifacts) == 1201


@pytest.mark.parametrize(
    ("given", "seen"),
    [("a_b", r"a\_b"), ("a\r\n b", "a b"), ("&lt;", "&amp;lt;"), (None, "None"), ("\\|", r"\\\|"), ("50$", r"50\$")],
)
def test_text_reads_as_it_was_written(given: Any, seen: str) -> None:
    assert card.escaped(given) == seen
