"""TextBrewer's GeneralDistiller, set up and fed as its SST-2 example does it: every row padded to the longest allowed.

Its soft term is a cross-entropy without the factor T^2: with the weight times T^2 it has the gradient of the others.
It saves the student's weights after each epoch, as it always does.
"""

from __future__ import annotations

import math
from typing import Any

from torch.utils.data import DataLoader, RandomSampler

from speed import program
from speed.clock import Clock
from speed.objective import make_optimizer, read_rows
from speed.work import Work


def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
    """What the distiller compares."""
    found = {"logits": outputs.logits, "losses": outputs.loss}
    return found if outputs.hidden_states is None else found | {"hidden": outputs.hidden_states}


def train(work: Work, setting: dict[str, Any], teacher: Any, student: Any, clock: Clock) -> None:
    """``setting`` goes to the DataLoader."""
    from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
    from transformers import get_linear_schedule_with_warmup

    for model in (teacher, student):
        model.config.output_hidden_states = bool(work.pairs)
    widths = student.config.hidden_size, teacher.config.hidden_size
    project = {} if widths[0] == widths[1] else {"proj": ["linear", *widths]}
    _, rows = read_rows(work, "train", padding="max_length")
    rows.set_format("torch")
    loader = DataLoader(rows, sampler=RandomSampler(rows), batch_size=work.batch, **setting)
    config = DistillationConfig(
        temperature=work.temperature,
        kd_loss_weight=work.soft * work.temperature**2,
        hard_label_weight=work.hard,
        intermediate_matches=[
            {
                "layer_T": theirs, "layer_S": ours, "feature": "hidden", "loss": "pkd", "weight": work.patient,
                # a list of its own for each: the library appends to it
                **{name: list(value) for name, value in project.items()},
            }
            for ours, theirs in work.pairs
        ],
    )  # fmt: skip
    distiller = GeneralDistiller(
        TrainingConfig(output_dir=work.path("textbrewer"), device="cpu"), config, teacher, student, adaptor, adaptor
    )
    with distiller:
        clock.start()
        distiller.train(
            make_optimizer(work, student),
            loader,
            work.epochs,
            scheduler_class=get_linear_schedule_with_warmup,
            scheduler_args={
                "num_warmup_steps": math.ceil(work.warmup * work.steps),
                "num_training_steps": work.steps,
            },
            max_grad_norm=work.clip,
        )


if __name__ == "__main__":
    program.main(train)
