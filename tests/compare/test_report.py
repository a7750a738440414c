"""From finished runs to files: results.json and back, tables, sentences, the picture, several studies."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rliable")

from studies import a_method_from_outside, a_plan, a_record

from hf_sharpness import TrainingArguments
from hf_sharpness.compare import across, report, results
from hf_sharpness.compare.choice import choose
from hf_sharpness.compare.errors import CompareError
from hf_sharpness.compare.plan import Plan
from hf_sharpness.compare.points import UNTUNED


def finished(plan: Plan, gain: int = 4, averaged: int = 0, point: int = 1) -> dict[str, dict[str, Any]]:
    """Runs in which `sam` has so many of 40 examples more right and more with some seeds; all are best at `point`."""
    records = {}
    for run in plan.tuning_runs():
        records[run.key] = a_record(run, 20 + (run.point == point))
    for run in plan.final_runs({arm.name: point for arm in plan.arms}):
        right = 20 + run.seed % 2 + gain * (run.arm == "sam") + run.seed % 3 * (run.arm == "sam")
        records[run.key] = a_record(run, right, 20 + averaged)
    return records


def a_study(folder: Path, **changes: Any) -> results.Study:
    plan = a_plan("sam", **changes)
    study = results.write(folder, plan, finished(plan), "hf-sharpness compare made-up")
    assert study is not None
    return study


def test_tuning_chooses_by_validation(tmp_path):
    plan = a_plan("sam")
    choice = choose(plan, finished(plan, point=1))
    assert choice.points == {"base": 1, "base-2x": 1, "averaged": 1, "sam": 1}
    assert choice.averages == {"averaged": ("base", "swa")}
    records = finished(plan)
    for seed in plan.tuning_seeds:
        records[f"tuning/base-2x/1/{seed}"]["averaged"]["ema"]["eval"] = {"accuracy": 0.9}
        records[f"tuning/sam/1/{seed}"]["eval"] = {"accuracy": None}  # diverged
    choice = choose(plan, records)
    assert choice.averages == {"averaged": ("base-2x", "ema")}
    assert choice.variants("base-2x") == ("ema",)
    assert choice.variants("base") == ()
    assert choice.points["sam"] == 0


def test_the_sentence_says_what_the_numbers_say(tmp_path):
    study = a_study(tmp_path)
    (item,) = study.judgements
    gains = 2.5 * np.array([4 + seed % 3 for seed in range(8)])
    assert item.decision.verdict == "helps"
    assert item.pairs[0].seeds == pytest.approx(gains)
    assert item.sentence.startswith(f"SAM rho .05 helps: +{gains.mean():.1f} points (")
    assert "p .008) over AdamW for 2.0x the passes" in item.sentence
    assert "over AdamW at equal passes" in item.sentence
    assert "over averaged AdamW" in item.sentence


def test_a_base_arm_that_is_better_leaves_it_undecided(tmp_path):
    plan = a_plan("sam")
    study = results.write(tmp_path, plan, finished(plan, averaged=8), "x")
    (item,) = study.judgements
    assert item.decision.verdict == "undecided"
    assert "; eight seeds would have shown" in item.sentence
    below = [pair.base for pair in item.pairs if (pair.seeds < 0).all()]
    assert below == ["averaged"]
    assert "; below averaged AdamW with every seed;" in item.sentence


def test_a_sweep_has_no_verdict(tmp_path):
    plan = a_plan("sam", points=(UNTUNED,), tuning_seeds=())
    fixed = {"choices": {}, "arguments": {"optim": "sam", "sam_rho": 0.05}}
    arms = [arm if arm.kind != "sharpness" else dataclasses.replace(arm, **fixed) for arm in plan.arms]
    plan = dataclasses.replace(plan, arms=tuple(arms))
    study = results.write(tmp_path, plan, finished(plan, point=0, averaged=30), "x")
    report.write(study, tmp_path)
    (item,) = study.judgements
    assert item.decision.verdict == "no verdict"
    assert item.sentence.startswith("SAM rho .05: +")
    assert study.choice.averages == {"averaged": ("base-2x", "swa")}
    assert not (tmp_path / "best").exists()
    text = (tmp_path / "table.md").read_text()
    assert "## Tuning" not in text
    assert "tuned on" not in text
    assert " p " not in item.sentence


def test_each_method_is_shown_with_its_own_length(tmp_path):
    plan = a_plan("sam,far", points=(UNTUNED,), tuning_seeds=())
    given = {"sam": {"optim": "sam", "sam_rho": 0.05}, "far": {"optim": "far", "far_rho": 0.8}}
    arms = [dataclasses.replace(arm, choices={}, arguments=given.get(arm.name, arm.arguments)) for arm in plan.arms]
    plan = dataclasses.replace(plan, arms=tuple(arms))
    with a_method_from_outside():
        study = results.write(tmp_path, plan, finished(plan, point=0), "x")
        report.write(study, tmp_path)
    assert [item.sentence.partition(":")[0] for item in study.judgements] == ["SAM rho .05", "FAR rho .8"]
    rows = {row["arm"]: row for row in csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))}
    assert [(rows[arm]["sam_rho"], rows[arm]["far_rho"]) for arm in ("base", *given)] == [
        ("", ""),
        ("0.05", ""),
        ("", "0.8"),
    ]


def test_a_metric_that_is_no_number_gets_no_verdict(tmp_path):
    plan = a_plan("sam")
    records = finished(plan)
    records["final/sam/1/3"]["test"] = {"accuracy": None}
    records["final/sam/1/3"]["diverged"] = True
    study = results.write(tmp_path, plan, records, "x")
    assert study.judgements[0].decision.verdict == "diverged"
    assert "sam in 1 of 8 final runs" in study.judgements[0].sentence
    report.write(study, tmp_path)
    assert "diverged: 1 of 8" in (tmp_path / "table.md").read_text()


def test_what_is_written_is_read_back(tmp_path):
    study = a_study(tmp_path)
    again = results.load(tmp_path)
    assert again.plan == study.plan
    assert again.signature == study.signature
    assert [item.sentence for item in again.judgements] == [item.sentence for item in study.judgements]
    content = json.loads((tmp_path / "results.json").read_text())
    assert (content["schema"], content["version"]) == ("hf-sharpness-compare", 1)
    assert content["verdicts"][0]["verdict"] == "helps"
    assert "labels" not in content["runs"][0]


def test_an_unfinished_study_is_kept_and_not_reported(tmp_path):
    plan = a_plan("sam")
    records = finished(plan)
    del records["final/sam/1/7"]
    assert results.write(tmp_path, plan, records, "x") is None
    assert len(results.records_of(results.read(tmp_path))) == len(records)
    with pytest.raises(CompareError, match="not finished"):
        results.load(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", ["schema"]),
        ("[1", ["not valid JSON"]),
        ('{"schema": "hf-sharpness-compare", "version": 99}', ["version 99", "newer"]),
    ],
)
def test_another_file_is_refused(tmp_path, text, words):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(CompareError) as raised:
        results.read(tmp_path)
    assert all(word in str(raised.value) for word in words)


def test_the_files_of_a_study(tmp_path):
    pytest.importorskip("matplotlib")
    study = a_study(tmp_path)
    report.write(study, tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert study.judgements[0].sentence in table
    assert study.signature in table
    assert "hf-sharpness compare made-up" in table
    assert "deviations from the protocol: none" in table
    rows = {row["arm"]: row for row in csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))}
    assert list(rows) == ["base", "base-2x", "averaged", "sam"]
    assert float(rows["sam"]["mean"]) == pytest.approx(study.outcomes["sam"].values.mean())
    assert float(rows["sam"]["gain_over_base"]) == pytest.approx(study.judgements[0].pairs[0].mean)
    assert (float(rows["sam"]["passes"]), float(rows["base"]["passes"])) == (120.0, 60.0)
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    arguments = TrainingArguments(output_dir=str(tmp_path), sharpness_config=str(tmp_path / "best"))
    assert (arguments.optim, arguments.sam_rho) == ("sam", study.outcomes["sam"].arguments["sam_rho"])


def test_lower_is_better(tmp_path):
    plan = a_plan("sam", metric="loss", greater_is_better=False)
    records = finished(plan)
    for key, record in records.items():
        _, arm, point, seed = key.split("/")
        value = {"loss": (2.0 if arm == "sam" else 3.0) + 0.5 * (point == "0") + 0.01 * int(seed)}
        record.update(eval=value, **({"test": value} if "test" in record else {}))
        record["averaged"] = {name: {"eval": value, "test": value} for name in record["averaged"]}
    study = results.write(tmp_path, plan, records, "x")
    assert study.judgements[0].decision.verdict == "helps"
    assert study.judgements[0].pairs[0].mean == pytest.approx(1.0)


def test_several_studies_in_one_table(tmp_path):
    studies = [a_study(tmp_path / name) for name in ("a", "b")]
    text = across.markdown(studies)
    assert text.count("helps") == 2
    mean, chance = across.across(studies, "sam")
    gains = np.concatenate([study.judgements[0].pairs[0].seeds for study in studies])
    middle = np.sort(gains)[len(gains) // 4 : -(len(gains) // 4)]
    assert mean.startswith(f"{middle.mean():+.2f} (")
    assert chance.startswith("1.00 (1.00 .. 1.00)")
