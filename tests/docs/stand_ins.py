"""What the documentation's examples find in their folder: tiny models under real names, and a little data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from installed import install
from models.saved import save_bert, save_vit
from models.text import WORDS, language_model, tokenizer
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

SCRIPT = """
from pathlib import Path
import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 2)

    def forward(self, x, labels):
        logits = self.layer(x)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}

(args,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses()
args.max_steps, args.save_strategy = 4, "no"
torch.manual_seed(0)
rows = [{"x": torch.randn(8), "labels": i % 2} for i in range(64)]
trainer = Trainer(model=Net(), args=args, train_dataset=rows)
trainer.train()
trainer.save_model()
Path(args.output_dir, f"rank-{args.process_index}-of-{args.world_size}").touch()
"""


def furnish(folder: Path) -> None:
    """Put everything that an example of the documentation names into a folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            pictures = folder / "pictures" / split / name
            pictures.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(pictures / f"{i}.png")
        rows = [f"{' '.join(rng.choice(WORDS, 6))},{i % 2}" for i in range(3 * count)]
        (folder / f"{split}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    texts = [{"text": " ".join(rng.choice(WORDS, 12))} for _ in range(32)]
    (folder / "train.jsonl").write_text("\n".join(json.dumps(text) for text in texts) + "\n")
    (folder / "your_script.py").write_text(SCRIPT)
    ours = "from transformers import HfArgumentParser\nfrom hf_sharpness import Trainer, TrainingArguments"
    (folder / "train.py").write_text(
        SCRIPT.replace("from transformers import HfArgumentParser, Trainer, TrainingArguments", ours)
    )
    root = Path(__file__).resolve().parents[2]
    os.symlink(root / "docs", folder / "docs")
    install(root / "examples" / "methods" / "gsam", folder / "site")
    save_vit(folder / "google/vit-base-patch16-224-in21k")
    save_bert(folder / "google-bert/bert-base-uncased")
    _save_digits(folder / "outputs/mine", root / "recipes/digits-vit.yaml")
    for part in (language_model(), tokenizer()):
        part.save_pretrained(folder / "Qwen/Qwen3-0.6B")


def _save_digits(folder: Path, recipe: Path) -> None:
    """What `hf-sharpness train digits-vit --output_dir outputs/mine` leaves, but for the training."""
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    shape = {"image_size": 8, "num_channels": 1, "patch_size": 4, "num_labels": 10}
    ViTForImageClassification(ViTConfig(**shape, **size)).save_pretrained(folder)
    (folder / "recipe.yaml").write_text(recipe.read_text())
