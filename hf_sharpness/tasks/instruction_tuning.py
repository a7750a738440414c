"""Instruction tuning: a causal language model learns to answer; the loss is that of the answer's tokens.

Where the tokenizer has a chat template, an example is a turn of the user and one of the assistant by it. Else

    ### Instruction:
    {instruction}

    ### Input:            (only with data.text_pair_column, where it is not empty)
    {input}

    ### Response:
    {response}
"""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from .errors import RecipeError
from .models import Task, build_config, build_model, load_tokenizer
from .recipe import Recipe
from .sources import Examples, Splits

IGNORED = -100
"""The label of tokens that count for no loss."""


class InstructionDataset(Dataset):
    """Examples as token ids and labels, tokenised when they are asked for.

    Args:
        examples: pairs of instruction and response, or triples with an input between.
        tokenizer: the model's.
        max_length: tokens of an example. The instruction is cut at its beginning, then the response at its end; a
            response keeps half of the length at least.
    """

    def __init__(self, examples: Examples, tokenizer: Any, max_length: int) -> None:
        self.examples, self.tokenizer, self.max_length = examples, tokenizer, max_length

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        (instruction, *more), _ = self.examples[index]
        response = more.pop()
        user = "\n\n".join([instruction, *(text for text in more if text)])
        if self.tokenizer.chat_template:
            turn = [{"role": "user", "content": user}]
            prompt = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            whole = self.tokenizer.apply_chat_template(
                [*turn, {"role": "assistant", "content": response}], tokenize=False
            )
            answer = whole[len(prompt) :] if whole.startswith(prompt) else response
        else:
            given = "".join(f"### Input:\n{text}\n\n" for text in more if text)
            prompt, answer = f"### Instruction:\n{instruction}\n\n{given}### Response:\n", response
        asked = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answered = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        end = self.tokenizer.eos_token_id
        if end not in answered[-2:]:  # a template may end a turn by itself, and with a line feed
            answered = [*answered, end]
        answered = answered[: max(self.max_length - len(asked), (self.max_length + 1) // 2)]
        asked = asked[max(0, len(asked) + len(answered) - self.max_length) :]
        labels = [IGNORED] * len(asked) + answered
        return {"input_ids": asked + answered, "attention_mask": [1] * len(labels), "labels": labels}


def build_instruction_task(recipe: Recipe, data: Splits) -> Task:
    """Build the model, the tokenizer and the data sets of an instruction-tuning recipe.

    Raises:
        RecipeError: The model or the tokenizer cannot be loaded, or the length leaves no room for an answer.
    """
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

    if recipe.data.max_length < 4:
        raise RecipeError(f"data.max_length: {recipe.data.max_length} leaves no room for an answer: at least 4")
    tokenizer = load_tokenizer(recipe.model)
    if tokenizer.eos_token is None:  # that of an encoder, which ends a text by another
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token is None:
        raise RecipeError("model.tokenizer: it has no token that ends a text, which a model needs to stop: use another")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    config = build_config(recipe.model, None, default_type=None, vocab_size=len(tokenizer))
    for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
        if recipe.model.name_or_path is None:
            setattr(config, name, getattr(tokenizer, name))
    model = build_model(AutoModelForCausalLM, recipe.model, config, limited=recipe.shared)
    train, evaluation, test = (
        InstructionDataset(examples, tokenizer, recipe.data.max_length)
        for examples in (data.train, data.eval, data.test)
    )
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    return Task(model, train, evaluation, test, collator, tokenizer)
