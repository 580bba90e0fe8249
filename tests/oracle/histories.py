"""Random histories, walked by the model and the product side by side."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from random import Random

from oracle.driver import Names, Product, profile_differences, receipt_differences
from oracle.generators import PARTNER, FileMaker, Step, random_steps, random_world
from oracle.installation import Files, Installation, ModelInstallation, Receipt

REFUSALS = ("rejected", "duplicate")


def paired(product: list[Receipt], model: list[Receipt]) -> tuple[list[tuple[Receipt, Receipt]], list[str]]:
    """Receipts of the same job side by side. Those of processed files must come in the order applied."""
    pairs: list[tuple[Receipt, Receipt]] = []
    found: list[str] = []
    for refused in (True, False):
        left, right = (
            [receipt for receipt in side if (receipt["status"] in REFUSALS) is refused] for side in (product, model)
        )
        if refused:
            left.sort(key=lambda receipt: str(receipt["files"]))
            right.sort(key=lambda receipt: str(receipt["files"]))
        names = [[receipt["files"] for receipt in side] for side in (left, right)]
        if names[0] != names[1]:
            found.append(f"jobs: {names[0]}, model {names[1]}")
        pairs += list(zip(left, right, strict=False))
    return pairs, found


def drop_differences(product: Installation, model: ModelInstallation, files: Files) -> tuple[list[str], dict[int, int]]:
    """Drops files into both; gives what differs, and the product's job number of each model job."""
    theirs, ours = product.drop(files, PARTNER), model.drop(files, PARTNER)
    pairs, found = paired(theirs, ours)
    for left, right in pairs:
        found += [f"{left['files']}: {text}" for text in receipt_differences(left, right)]
    return found, {right["job"]: left["job"] for left, right in pairs}


def walk(seed: int, length: int, home: Path, *, product: Installation | None = None) -> list[str]:
    """One history of ``length`` steps; gives the differences of its first step that has some."""
    rng = Random(seed)
    world = random_world(rng)
    model = ModelInstallation(world.workspace, world.limits)
    if product is None:
        product = Product(home, world.workspace, world.limits)
    numbers: dict[int, int] = {}
    names = Names()
    jobs = [list(job.files) for job in model.jobs]
    for number, (distance, step) in enumerate(random_steps(rng, world, model.model, jobs, length)):
        model.now += distance
        product.now = model.now
        found = take(step, product, model, numbers)
        jobs[:] = [list(job.files) for job in model.jobs]
        profiles = 12 if number == length - 1 else 0 if step.action == "drop" else 3
        found += state_differences(rng, product, model, names, profiles)
        if found:
            shown = [name for name, _ in step.files]
            return [f"seed {seed}, step {number} ({step.action} {shown} {step.job or ''} {step.file or ''}):", *found]
    return []


def take(step: Step, product: Installation, model: ModelInstallation, numbers: dict[int, int]) -> list[str]:
    """One step on both sides."""
    if step.action == "drop":
        found, more = drop_differences(product, model, step.files)
        numbers.update(more)
        return found
    if step.action == "apply":
        assert step.workspace is not None
        product.apply(step.workspace)
        model.apply(step.workspace)
    elif step.action == "undo":
        product.undo(numbers[step.job], step.file)
        model.undo(step.job, step.file)
    else:
        product.redo(numbers[step.job], step.file)
        model.redo(step.job, step.file)
    return []


def state_differences(
    rng: Random, product: Installation, model: ModelInstallation, names: Names, profiles: int
) -> list[str]:
    """Populations, and some profiles chosen at random."""
    ours, theirs = model.populations(), product.populations()
    found = [
        f"population of {sid}: {theirs.get(sid)}, model {figure}"
        for sid, figure in ours.items()
        if theirs.get(sid) != figure
    ]
    everybody = model.model.everybody()
    for text in rng.sample(everybody, min(len(everybody), profiles)):
        differences = profile_differences(product.profile(text), model.profile(text), model.model.retimed, names)
        found += [f"profile {text!r}: {difference}" for difference in differences]
    return found


def many_files(seed: int, count: int) -> tuple[ModelInstallation, list[Files]]:
    """A model and drops of ``count`` random files in all, a few refused ones among them."""
    rng = Random(seed)
    world = random_world(rng)
    maker = FileMaker(rng, world)
    drops: list[Files] = [maker.first()]
    while count > 0:
        files = [maker.refused()] if rng.random() < 0.3 else maker.mixture(min(count, 10))
        drops.append(files)
        count -= len(files)
    return ModelInstallation(world.workspace, world.limits), drops


def sums_differences(receipt: Receipt) -> list[str]:
    """IN-81, IN-86: each processed record is in one class, and the reasons of a class add up to its figure."""
    classes = ("format_errors", "invalid_aam_ids", "invalid_device_ids", "no_matching_aam_ids", "no_trait_realized")
    found = []
    if receipt["stored_records"] != receipt["records_processed"] - sum(receipt[name] for name in classes):
        found.append("stored records are not what is left")
    if sum(receipt["reason_counts"].values()) != receipt["records_processed"] - receipt["stored_records"]:
        found.append("the reasons do not add up")
    if not 0 <= receipt["records_processed"] <= receipt["records_received"]:
        found.append("more was processed than received")
    if receipt["total_users_with_failed_traits"] > receipt["total_traits_failed_validation"]:
        found.append("more users than traits failed")
    if receipt["total_unused_signals"] > receipt["total_signals"]:
        found.append("more signals unused than there are")
    return [f"{receipt['files']}: {text}" for text in found]


def soon(installation: Installation) -> None:
    """A moment later."""
    installation.now += timedelta(minutes=1)
