"""Instruction tuning: the answer's tokens alone count, by either form of text; a whole run; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from models.saved import save_bert
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_sharpness.tasks.errors import RecipeError
from hf_sharpness.tasks.flags import apply_flags
from hf_sharpness.tasks.instruction_tuning import IGNORED, InstructionDataset
from hf_sharpness.tasks.prepare import build_task
from hf_sharpness.tasks.recipe import Recipe, load_recipe
from hf_sharpness.tasks.run import run_recipe
from hf_sharpness.tasks.sections import DataSection, ModelSection
from hf_sharpness.tasks.sources import Examples
from hf_sharpness.tasks.splits import load_data

TEMPLATE = (
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("reader") / "bert"
    save_bert(folder)
    return folder


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    """Of words; [SEP] ends a text."""
    words = AutoTokenizer.from_pretrained(folder)
    words.add_tokens(["instruction", "input", "response", "user", "assistant", "###", ":", "[", "]"])
    words.add_tokens(["Instruction", "Input", "Response"])  # a tokenizer of transformers 5.0 keeps capitals
    words.eos_token = words.sep_token
    return words


def words(tokenizer: Any, ids: list[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens([i for i in ids if i != IGNORED])


def example(tokenizer: Any, *texts: str, max_length: int = 64) -> dict[str, list[int]]:
    return InstructionDataset(Examples.of([texts], [0]), tokenizer, max_length)[0]


def known(tokenizer: Any) -> list[str]:
    """Four words that are none of the prompt's own."""
    own = {"instruction", "input", "response", "user", "assistant"}
    return sorted(word for word in tokenizer.get_vocab() if word.isalpha() and word.islower() and word not in own)[:4]


def test_the_loss_is_of_the_answer_and_the_end(tokenizer: Any) -> None:
    a, b, c, d = known(tokenizer)
    row = example(tokenizer, f"{a} {b}", f"{c} {d}")
    assert words(tokenizer, row["labels"]) == [c, d, "[SEP]"]
    assert row["input_ids"][-3:] == row["labels"][-3:]
    assert words(tokenizer, row["input_ids"]).index(a) < words(tokenizer, row["input_ids"]).index(c)
    assert len(row["input_ids"]) == len(row["labels"]) == sum(row["attention_mask"])
    with_input = words(tokenizer, example(tokenizer, a, b, c)["input_ids"])
    assert [word for word in map(str.lower, with_input) if word in (a, b, c, "input")] == [a, "input", b, c]
    without = words(tokenizer, example(tokenizer, a, "", c)["input_ids"])
    assert "input" not in map(str.lower, without)


def test_by_a_chat_template(tokenizer: Any) -> None:
    a, b, c, _ = known(tokenizer)
    tokenizer.chat_template = TEMPLATE
    row = example(tokenizer, a, b, c)
    assert words(tokenizer, row["labels"]) == [c, "[SEP]"]
    everything = words(tokenizer, row["input_ids"])
    assert [word for word in everything if word.isalpha()] == ["user", a, b, "assistant", c]


@pytest.mark.parametrize(("asked", "answered"), [(30, 2), (2, 30), (30, 30)])
def test_a_long_example_keeps_an_answer(asked: int, answered: int, tokenizer: Any) -> None:
    """The instruction loses its beginning first; at least half of the length is left to the response."""
    a, _, c, _ = known(tokenizer)
    row = example(tokenizer, " ".join([a] * asked), " ".join([c] * answered), max_length=10)
    assert len(row["input_ids"]) <= 10
    kept = words(tokenizer, row["labels"])
    assert kept == ([c] * answered + ["[SEP]"])[: len(kept)]
    assert len(kept) >= min(answered + 1, 5)


@pytest.fixture
def recipe(folder: Path, tmp_path: Path) -> Recipe:
    pytest.importorskip("datasets")
    rows = [f"good film {n % 3},very bad,{['good', 'bad'][n % 2]}" for n in range(50)]
    (tmp_path / "x.csv").write_text("ask,more,reply\n" + "\n".join(rows) + "\n")
    columns = {"text_column": "ask", "text_pair_column": "more", "response_column": "reply"}
    data = DataSection(source="csv", data_files=str(tmp_path / "x.csv"), max_length=32, **columns)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = {**size, "intermediate_size": 16, "max_position_embeddings": 32}
    model = ModelSection(model_type="llama", tokenizer=str(folder), config=config)
    training = {"optim": "sam", "max_steps": 3, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
    return Recipe("instruction-tuning", model, data, {**training, "output_dir": str(tmp_path / "out")}, metrics=[])


def test_a_run_leaves_a_model_that_answers(recipe: Recipe, tmp_path: Path) -> None:
    metrics = run_recipe(recipe)
    assert metrics["test_loss"] > 0
    out = tmp_path / "out"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    task = build_task(recipe, load_data(recipe))
    batch = task.data_collator([task.test_dataset[0], task.test_dataset[1]])
    with torch.no_grad():
        loss = model(**batch).loss
    assert torch.isfinite(loss)
    assert tokenizer.eos_token == "[SEP]"
    assert model.config.eos_token_id == tokenizer.eos_token_id
    card = (out / "README.md").read_text()
    assert "text-generation" in card
    assert "classes" not in card
    again = load_recipe(out / "recipe.yaml")
    assert (again.task, again.metrics, again.data.response_column) == ("instruction-tuning", [], "reply")


def test_what_it_refuses(recipe: Recipe, tmp_path: Path) -> None:
    recipe.data.label_noise = 0.1
    with pytest.raises(RecipeError, match="instruction tuning has no labels"):
        load_data(recipe)
    recipe.data.label_noise, recipe.data.response_column = 0.0, "rely"
    with pytest.raises(RecipeError, match=r"data\.response_column: .* no column 'rely'.*'reply'"):
        load_data(recipe)
    (tmp_path / "x.yaml").write_text("task: instruction-tuning\ndata: {source: csv}\nmetrics: [accuracy]\n")
    with pytest.raises(RecipeError, match="metrics: instruction tuning is judged by its loss"):
        load_recipe(tmp_path / "x.yaml")


def test_compare_sends_it_to_a_script(recipe: Recipe) -> None:
    pytest.importorskip("torchmetrics")
    from hf_sharpness.compare.recipe_runs import RecipeSubject

    with pytest.raises(RecipeError, match="give it with --script"):
        RecipeSubject(recipe)


def test_the_flags_of_a_real_run_in_the_recipes_comment_are_valid() -> None:
    path = Path(__file__).parents[2] / "recipes" / "instruct-tiny.yaml"
    lines = [line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#")]
    command = " ".join(lines).partition("train instruct-tiny ")[2]
    recipe = load_recipe(path)
    apply_flags(recipe, [word.strip("'") for word in command.split()])
    assert recipe.model.config == {}
    assert recipe.model.tokenizer is None
    assert recipe.model.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert recipe.peft is not None
    assert (recipe.data.text_pair_column, recipe.data.max_length) == ("context", 512)


def test_trec_as_instructions() -> None:
    try:
        data = load_data(load_recipe(Path(__file__).parents[2] / "recipes" / "instruct-tiny.yaml"))
    except RecipeError as error:
        pytest.skip(str(error))  # a package of data is not installed
    assert (len(data.train), len(data.eval), len(data.test)) == (1000, 430, 1076)
    answers = {response for (_, response), _ in data.test}
    assert answers == {
        f"It asks for {kind}."
        for kind in ("an abbreviation", "a description", "a thing", "a person", "a place", "a number")
    }
    asked = dict(pair for part in (data.train, data.eval, data.test) for pair, _ in part)
    who = [q for q in asked if q.startswith("What kind of answer does this question ask for? Who ")]
    assert sum(asked[q] == "It asks for a person." for q in who) > 0.8 * len(who)
