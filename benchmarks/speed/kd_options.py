"""What makes kd fast, by the settings that switch it on and off. The one table to change when a setting is renamed."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import OmegaConf

from kd.choices import CHOICES
from kd.command_line import compose


@dataclass(frozen=True)
class Ingredient:
    """``on`` are values in the order in which they are tried; the first one that this kd takes is used."""

    name: str
    key: str
    on: tuple[str, ...]
    off: str


INGREDIENTS = (
    Ingredient("teacher's signals cached", "cache", ("auto",), "off"),
    Ingredient("bf16", "trainer.precision", ("auto", "bf16-mixed"), "32-true"),
    Ingredient("lazy embeddings", "trainer.lazy_embeddings", ("auto", "true"), "false"),
    Ingredient("compile", "compile", ("auto",), "off"),
)


def value_on(ingredient: Ingredient) -> str | None:
    """The value that switches it on; None where this kd has no such setting."""
    missing = object()
    if OmegaConf.select(compose([]), ingredient.key, default=missing) is missing:
        return None
    return next(value for value in ingredient.on if value in CHOICES.get(ingredient.key, (value,)))


def known() -> dict[str, tuple[str, str]]:
    """``name -> (override that switches it on, ... off)``; those that this kd has not are named on the terminal."""
    found = {}
    for ingredient in INGREDIENTS:
        value = value_on(ingredient)
        if value is None:
            print(f"LEFT OUT: {ingredient.name}, for this train.py knows no {ingredient.key}=", flush=True)
        else:
            found[ingredient.name] = (f"{ingredient.key}={value}", f"{ingredient.key}={ingredient.off}")
    return found


def fastest(always_cached: bool = False) -> list[str]:
    """``always_cached``: the teacher's pass is made however few steps follow, where ``auto`` would leave it out."""
    lines = [on for on, _ in known().values()]
    return ["cache=on" if always_cached and line == "cache=auto" else line for line in lines]


def variants() -> list[tuple[str, list[str]]]:
    """Rows of the table of ingredients: none, one added after another, and all but one."""
    options = known()
    on, off = ([pair[i] for pair in options.values()] for i in (0, 1))
    rows = [("none of them", off)]
    for i, name in enumerate(options):
        rows.append((f"+ {name}", [*on[: i + 1], *off[i + 1 :]]))
    for i, name in enumerate(options) if len(options) > 1 else ():
        rows.append((f"all but {name}", [*on[:i], off[i], *on[i + 1 :]]))
    return [row for i, row in enumerate(rows) if row[1] not in [other for _, other in rows[:i]]]
