"""Checks that every way to a class leads to the same one, with the module that the first argument names imported first.

The second argument is the package whose classes they must be, the third a folder for what HF_HOME must be.
"""

import importlib
import inspect
import os
import pickle
import sys
import textwrap

first, package, home = sys.argv[1:]
os.environ["HF_HOME"] = home

import transformers

if first:
    importlib.import_module(first)

import huggingface_hub.constants
import transformers.trainer
import transformers.trainer_callback
import transformers.trainer_seq2seq
import transformers.training_args
import transformers.training_args_seq2seq
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

CLASSES = {
    "Trainer": Trainer,
    "Seq2SeqTrainer": Seq2SeqTrainer,
    "TrainingArguments": TrainingArguments,
    "Seq2SeqTrainingArguments": Seq2SeqTrainingArguments,
}

assert huggingface_hub.constants.HF_HOME == home
assert transformers.TrainingArguments is importlib.import_module("transformers").TrainingArguments
for name, cls in CLASSES.items():
    assert cls.__module__.startswith(package), (name, cls)
    assert getattr(transformers, name) is cls
    for module_name, module in list(sys.modules.items()):
        if module_name.split(".")[0] == "transformers":
            assert vars(module).get(name, cls) is cls, (module_name, name)

assert issubclass(Seq2SeqTrainer, Trainer) and issubclass(Seq2SeqTrainingArguments, TrainingArguments)
assert list(inspect.signature(Trainer).parameters)[:3] == ["model", "args", "data_collator"]

args = Seq2SeqTrainingArguments(os.path.join(home, "out"), use_cpu=True)
again = pickle.loads(pickle.dumps(args))
assert type(again) is Seq2SeqTrainingArguments and again.to_dict() == args.to_dict()
for base in type(args).__mro__:  # an instance of a stock class, as a training_args.bin from elsewhere holds it
    if base.__module__.startswith("transformers"):
        path = f"c{base.__module__}\n{base.__name__}\n".encode()
        assert pickle.loads(path + b".") is CLASSES[base.__name__]
assert Trainer.get_optimizer_cls_and_kwargs(args)[0].__name__ == "AdamW"

# As Axolotl rewrites a method: from its source, with the names of the module that the class says it is from.
source = textwrap.dedent(inspect.getsource(Trainer.evaluation_loop))
names = [name for name in dir(importlib.import_module(Trainer.__module__)) if name in source]
exec(f"from {Trainer.__module__} import {', '.join(names)}\n{source}")

print("checked", package)
