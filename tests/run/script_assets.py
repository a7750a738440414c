"""Tiny models with random weights, and small data files cut from texts and images that come with scikit-learn."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.saved import save_models

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "bos_token": "[BOS]",
    "eos_token": "[EOS]",
}
CHAT = "{% for message in messages %}{{ message['role'] + ' : ' + message['content'] + ' ' }}{% endfor %}"


def make(folder: Path) -> None:
    """Write models into ``folder/models`` and data files into ``folder/data``."""
    sentences = labelled_sentences()
    tokenizer = make_tokenizer([text for text, _ in sentences], folder / "models")
    save_models(tokenizer, folder / "models")
    make_data(sentences, folder / "data")


def labelled_sentences() -> list[tuple[str, int]]:
    """Sentences of scikit-learn's descriptions of data sets: 0 from those of tables, 1 of images and texts."""
    import sklearn.datasets

    described = Path(sklearn.datasets.__file__).parent / "descr"
    by_label = []
    for names in ("breast_cancer", "diabetes", "iris", "linnerud"), ("digits", "lfw", "rcv1", "twenty_newsgroups"):
        text = " . ".join((described / f"{name}.rst").read_text(encoding="utf-8") for name in names)
        sentences = re.sub(r"[^A-Za-z0-9. ]", " ", text).split(".")
        by_label.append([" ".join(s.split()) for s in sentences if 5 <= len(s.split()) <= 24])
    return [(text, label) for pair in zip(*by_label, strict=False) for label, text in enumerate(pair)][:48]


def make_tokenizer(texts: Sequence[str], folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({w for text in texts for w in text.split()} | {"user", "assistant", ":"})
    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **SPECIAL)
    tokenizer.chat_template = CHAT
    return tokenizer


def make_data(sentences: Sequence[tuple[str, int]], folder: Path) -> None:
    folder.mkdir(parents=True)
    for split, rows in ("train", sentences[:32]), ("validation", sentences[32:]):
        with open(folder / f"{split}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sentence", "label"])
            writer.writerows(rows)
        texts = [text for text, _ in rows]
        (folder / f"{split}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        tags = [["NUM" if w.isdigit() else "CAP" if w[0].isupper() else "O" for w in text.split()] for text in texts]
        write_lines(
            folder / f"{split}-tags.json",
            [{"tokens": text.split(), "ner_tags": tag} for text, tag in zip(texts, tags, strict=True)],
        )
        write_lines(
            folder / f"{split}-summaries.json",
            [{"text": text, "summary": " ".join(text.split()[:4])} for text in texts],
        )
        write_lines(
            folder / f"{split}-translations.json",
            [{"translation": {"en": text, "ro": " ".join(reversed(text.split()))}} for text in texts],
        )
        answers = [text.split()[-1] for text in texts]
        (folder / f"{split}-qa.json").write_text(
            json.dumps(
                {
                    "data": [
                        {
                            "id": str(number),
                            "question": " ".join(text.split()[:2]),
                            "context": text,
                            "answers": {"text": [answer], "answer_start": [text.rindex(answer)]},
                        }
                        for number, (text, answer) in enumerate(zip(texts, answers, strict=True))
                    ]
                }
            ),
            encoding="utf-8",
        )
        write_lines(
            folder / f"{split}-chats.json",
            [{"messages": [{"role": "user", "content": t}, {"role": "assistant", "content": t}]} for t in texts],
        )
        write_lines(
            folder / f"{split}-preferences.json",
            [
                {"prompt": f"{t} ", "chosen": " ".join(t.split()[:3]), "rejected": " ".join(t.split()[-3:])}
                for t in texts
            ],
        )
    make_images(folder / "images")
    chats = folder.parent / "chats"  # a folder that stands for a data set of the Hub
    chats.mkdir()
    (chats / "train.jsonl").write_text((folder / "train-chats.json").read_text(encoding="utf-8"), encoding="utf-8")


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_images(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits(n_class=2)
    for number, (image, label) in enumerate(zip(digits.images[:48], digits.target[:48], strict=True)):
        split = "train" if number < 32 else "validation"
        path = folder / split / ("zero", "one")[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype("uint8"), mode="L").save(path)
