"""transformers' Trainer with a loss of its own, as its documentation shows it."""

from __future__ import annotations

from typing import Any

import torch

from speed import program
from speed.clock import Clock
from speed.objective import loss, projections, read_rows
from speed.work import Work


def train(work: Work, setting: dict[str, Any], teacher: Any, student: Any, clock: Clock) -> None:
    """``setting`` holds further TrainingArguments: workers, the sampling strategy, bf16."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    class DistillationTrainer(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            states = {"output_hidden_states": bool(work.pairs)}
            outputs = model(**inputs, **states)
            asked = {name: tensor for name, tensor in inputs.items() if name != "labels"}
            # the student's forward runs in bf16 by itself, a teacher of the user's has to be told
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.args.bf16):
                wanted = teacher(**asked, **states)
            value = loss(work, outputs, wanted, maps)
            return (value, outputs) if return_outputs else value

    maps = projections(work, student, teacher)
    student.patient = maps  # within the model, so that the optimizer has it
    tokenizer, rows = read_rows(work, "train")
    arguments = TrainingArguments(
        output_dir=work.path("trainer"),
        per_device_train_batch_size=work.batch,
        num_train_epochs=work.epochs,
        learning_rate=work.lr,
        weight_decay=work.weight_decay,
        warmup_steps=work.warmup,
        max_grad_norm=work.clip,
        seed=work.seed,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        **setting,
    )
    trainer = DistillationTrainer(
        student, arguments, train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer)
    )
    clock.start()
    trainer.train()


if __name__ == "__main__":
    program.main(train)
