"""Sequence classification: one text, or a pair of texts, to one class."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from .models import Task, build_config, build_model, load_tokenizer
from .recipe import Recipe
from .sources import Examples, Splits


class TextDataset(Dataset):
    """Examples as the tokenizer's fields plus `labels`, tokenised when they are asked for; the collator pads."""

    def __init__(self, examples: Examples, tokenizer: Any, max_length: int) -> None:
        self.examples, self.tokenizer, self.max_length = examples, tokenizer, max_length

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        text, label = self.examples[index]
        texts = text if isinstance(text, tuple) else (text,)
        return {**self.tokenizer(*texts, truncation=True, max_length=self.max_length), "labels": label}


def build_text_task(recipe: Recipe, data: Splits) -> Task:
    """Build the model, the tokenizer and the data sets of a sequence-classification recipe.

    Raises:
        RecipeError: The model or the tokenizer cannot be loaded.
    """
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

    tokenizer = load_tokenizer(recipe.model)
    config = build_config(recipe.model, data, default_type=None, vocab_size=len(tokenizer))
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:  # most decoder-only models
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id
    model = build_model(AutoModelForSequenceClassification, recipe.model, config, limited=recipe.shared)
    train, evaluation, test = (
        TextDataset(examples, tokenizer, recipe.data.max_length) for examples in (data.train, data.eval, data.test)
    )
    return Task(model, train, evaluation, test, DataCollatorWithPadding(tokenizer), tokenizer)
