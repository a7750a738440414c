"""A script that trains as Axolotl does with the plugin: with its plugin manager, arguments and trainer."""

import json
import sys
from pathlib import Path

from axolotl.integrations.base import PluginManager
from axolotl.integrations.config import merge_input_args
from axolotl.utils.dict import DictDefault
from datasets import Dataset
from models.text import language_model, tokenizer
from transformers import DataCollatorForSeq2Seq

GIVEN = {"sharpness": "wsam", "sam_rho": 0.2, "sam_adaptive": False, "optimizer": "adamw_torch"}


def refusal(manager, given):
    try:
        manager.get_trainer_cls(DictDefault(given))
    except ValueError as error:
        return str(error)


if __name__ == "__main__":
    folder, optimizer = Path(sys.argv[1]), sys.argv[2]
    given = GIVEN if optimizer == "wsam" else {"optimizer": "adamw_torch"}
    manager = PluginManager.get_instance()
    manager.register("hf_sharpness.integrations.axolotl.SharpnessPlugin")
    with_gpu, _ = merge_input_args()
    assert {"sharpness", "sam_rho", "xsam_alpha"} <= set(with_gpu.model_fields)
    cfg = DictDefault(given)

    from axolotl.core.training_args import AxolotlTrainingArguments  # only now: it takes in the plugins' fields

    arguments = {
        "output_dir": str(folder / "out"),
        "optim": given["optimizer"],
        "use_cpu": True,
        "max_steps": 3,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "report_to": "none",
        "save_strategy": "no",
    }
    arguments.update(manager.get_training_args(cfg) or {})
    trainer_class = manager.get_trainer_cls(cfg)
    if optimizer != "wsam":
        from axolotl.core.trainers.base import AxolotlTrainer

        assert trainer_class is None
        trainer_class = AxolotlTrainer
    rows = [{"input_ids": [3 + i % 9, 4, 5], "labels": [3 + i % 9, 4, 5], "attention_mask": [1] * 3} for i in range(32)]
    trainer = trainer_class(
        model=language_model(),
        args=AxolotlTrainingArguments(**arguments),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        data_collator=DataCollatorForSeq2Seq(tokenizer()),
    )
    trainer.axolotl_cfg = cfg
    trainer.train()
    refusals = [refusal(manager, {**GIVEN, key: "dpo"}) for key in ("rl", "trainer_cls")]
    result = {"history": trainer.state.log_history, "refusals": refusals}
    (folder / "result.json").write_text(json.dumps(result))
