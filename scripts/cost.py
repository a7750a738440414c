"""What a sharpness-aware step costs: time against the floor, memory in multiples of the weights, collectives.

    python scripts/cost.py                          # ViT of 5.4 million weights, batch 16, on a CPU with one thread
    python scripts/cost.py --device cuda --subject vit-base --batch 64 --bf16
    python scripts/cost.py --only memory            # bytes read, written, and alive, counted operator by operator
    python scripts/cost.py --only parameters micro-batches ranks --picture cost.png

The floor of a method is what no implementation can do without: its forward and backward passes and one step of the base
optimizer (AdamW). All take turns in one process; ratios are to the floor of the same round. Steps are those between
two logs, without ``sam_check``'s further pass. ``pytorch_optimizer``, where installed, takes part.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from costs import report
from costs.arms import MAIN, METHODS, Arm, Setting, cheaper, floor, floor_name, ours
from costs.in_trainer import ARGUMENTS, in_trainer
from costs.peers import peers
from costs.ranks import on_ranks
from costs.subjects import SUBJECTS, subject, vit
from costs.timing import Timed, clock_for, take_turns
from costs.traffic import measured

CUTS = (1, 2, 4, 8)
"""Micro-batches of one batch, for that part."""
PARTS = ("time", "memory", "parameters", "micro-batches", "ranks")
WIDTHS = ((96, 9), (192, 12), (384, 12), (768, 12), (1024, 24))
"""Units and layers of vision transformers of 1, 5.4, 21, 85 and 302 million weights."""


def steps_of_a_turn(device: torch.device) -> int:
    """On an accelerator several, of which none waits for the one before."""
    return 1 if device.type == "cpu" else 4


def timed(arms: list[Arm], rounds: int, setting: Setting) -> dict[str, Timed]:
    """Let the arms take turns, and give back what they hold."""
    try:
        return take_turns(arms, rounds, clock_for(setting.device)[0], steps=steps_of_a_turn(setting.device))
    finally:
        for arm in arms:
            arm.close()


def time_part(setting: Setting, rounds: int, main_only: bool) -> None:
    """The table of times: the floors, the methods in a plain loop and in the Trainer, and others' implementations."""
    names = MAIN if main_only else list(METHODS)
    arms = [floor(setting, replays) for replays in range(2 if main_only else 3)]
    arms += [ours(setting, name) for name in names] + cheaper(setting)
    if setting.micro_batches == 1:
        arms += peers(setting)
    arms += [in_trainer(setting, name) for name in ARGUMENTS]
    floors = {arm.name: arm.floor for arm in arms}
    found = timed(arms, rounds, setting)
    print(report.times_table(found, floors), "\n")
    middle = {name: sorted(taken.seconds)[len(taken.seconds) // 2] for name, taken in found.items()}
    own = middle["stock Trainer, base"] - middle["base"]
    for name in MAIN:
        added = middle[f"Trainer, {name}"] - middle[name]
        print(f"The Trainer adds {1e3 * added:.1f} ms to {name} (transformers' own to the base: {1e3 * own:.1f} ms).")


def memory_part(setting: Setting) -> None:
    """The table of bytes."""
    base = measured(lambda: floor(setting, 0))
    floors = {floor_name(replays): measured(lambda replays=replays: floor(setting, replays)) for replays in (1, 2)}
    makers = [lambda name=name: ours(setting, name) for name in METHODS if "searching" not in name]
    makers += [lambda index=index: peers(setting)[index] for index in range(len(peers(setting)))]
    found, of = {}, {}
    for make in makers:
        arm = make()
        arm.step()
        found[arm.name], of[arm.name] = measured(make), floors[arm.floor]
    print(report.memory_table(found, base, of))


Series = dict[str, dict[float, float]]


def varied(settings: dict[float, Setting], rounds: int) -> Series:
    """The ratios of the methods to their floors in each of several settings.

    Each takes turns with its floor alone: where they are large, five models with their optimizers would not fit.
    """
    series: Series = {name: {} for name in MAIN}
    for value, setting in settings.items():
        for name in MAIN:
            found = timed([floor(setting, 1), ours(setting, name)], rounds, setting)
            series[name][value] = found[name].ratio
    return series


def print_series(what: str, series: Series) -> None:
    """As a table."""
    values = list(next(iter(series.values())))
    rows = [[name, *(f"{points[v]:.3f}" for v in values)] for name, points in series.items()]
    print(report.table([what, *(f"{v:g}" for v in values)], rows), "\n")


def main() -> None:
    """Print the tables, and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--subject", choices=SUBJECTS, default="vit-tiny")
    parser.add_argument("--batch", type=int, help="examples in a batch (of each process, for ranks)")
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=["time", "memory"])
    parser.add_argument("--main", action="store_true", help="time the four main methods only")
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2], help="numbers of processes, for ranks")
    parser.add_argument("--picture", type=Path, help="draw what was varied into this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    setting = Setting(subject(args.subject, args.batch), device, args.micro_batches, args.bf16)
    most = max(args.micro_batches, *(CUTS if "micro-batches" in args.only else (1,)))
    if setting.subject.batch % most:
        parser.error(f"--batch {setting.subject.batch} cannot be cut into {most} micro-batches: take a multiple of it")
    weights = setting.subject.million_weights()
    print(f"{report.where(device)}; {setting.subject.describe}, {weights:.1f} million weights", end="")
    print(f"{', bf16 autocast' if args.bf16 else ''}; {clock_for(device)[1]}", end="")
    print(f", {args.rounds} rounds of {steps_of_a_turn(device)} step(s)\n")
    panels = []
    if "time" in args.only:
        time_part(setting, args.rounds, args.main)
    if "memory" in args.only:
        memory_part(setting)
    if "parameters" in args.only:
        made = [vit(hidden, layers, 32, 4, setting.subject.batch) for hidden, layers in WIDTHS]
        settings = {round(s.million_weights(), 1): dataclasses.replace(setting, subject=s) for s in made}
        series = varied(settings, args.rounds)
        print_series("million weights", series)
        panels.append((setting.subject.describe.partition(",")[0].split()[0], "million weights", series))
    if "micro-batches" in args.only:
        settings = {float(n): dataclasses.replace(setting, micro_batches=n) for n in CUTS}
        series = varied(settings, args.rounds)
        print_series("micro-batches of a batch", series)
        panels.append((f"{weights:.1f} million weights", "micro-batches of a batch", series))
    if "ranks" in args.only:
        found = {world: on_ranks(world, args.subject, setting.subject.batch, args.rounds) for world in args.worlds}
        names = list(found[args.worlds[0]])
        rows = [
            [name, *(str(found[w][name][0]) for w in args.worlds)]
            + [f"{found[w][name][1] / found[w]['floor'][1]:.3f}" for w in args.worlds]
            for name in names
        ]
        header = [*(f"collectives, {w} ranks" for w in args.worlds), *(f"time / floor, {w} ranks" for w in args.worlds)]
        print(report.table(["step, scope", *header], rows), "\n")
    if args.picture and panels:
        report.picture(args.picture, panels)


if __name__ == "__main__":
    main()
