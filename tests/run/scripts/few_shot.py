"""Few-shot classification with SetFit, which trains sentence embeddings inside."""

import sys

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from setfit import SetFitModel, Trainer, TrainingArguments
from sklearn.linear_model import LogisticRegression

model_path, optim = sys.argv[1:]
texts = ["Mean Radius", "Worst Radius", "digits from people", "faces of people"] * 4
trainer = Trainer(
    model=SetFitModel(SentenceTransformer(model_path, device="cpu"), LogisticRegression()),
    args=TrainingArguments(output_dir="out", max_steps=3, batch_size=4, logging_steps=1, report_to="none"),
    train_dataset=Dataset.from_dict({"text": texts, "label": [0, 0, 1, 1] * 4}),
)
trainer.st_trainer.args.set_optimizer(optim)
trainer.train()
print(trainer.st_trainer.state.log_history)
