"""Tiny models with random weights, and small data files cut from texts and images that come with scikit-learn."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    make_models(tokenizer, folder / "models")
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


def make_models(tokenizer: Any, folder: Path) -> None:
    import torch
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        BertConfig,
        BertForMaskedLM,
        LlamaConfig,
        LlamaForCausalLM,
        ViTConfig,
        ViTForImageClassification,
        ViTImageProcessor,
    )

    sizes = {"vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    bart = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        decoder_start_token_id=tokenizer.eos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
        **ids,
    )
    torch.manual_seed(0)
    models = {
        "bert": BertForMaskedLM(BertConfig(**sizes, intermediate_size=16, max_position_embeddings=64, **ids)),
        "llama": LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=16, max_position_embeddings=64, **ids)),
        "bart": BartForConditionalGeneration(bart),
        "vit": ViTForImageClassification(
            ViTConfig(
                image_size=8,
                patch_size=4,
                num_channels=3,
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                num_labels=2,
            )
        ),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        if name == "vit":
            ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / name)
        else:
            tokenizer.save_pretrained(folder / name)


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
