"""Memberships follow files, undo, time and the configuration: random histories against a naive model (QL-904)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from openaudience.home import Home
from openaudience.runs.checking import check
from openaudience.runs.membership import evaluate_all
from openaudience.runs.site import Lease, Site
from oracle.driver import Product
from oracle.generators import random_steps, random_world
from oracle.histories import take
from oracle.installation import ModelInstallation
from oracle.model import Profile
from oracle.segments import Segment, members, random_segments, with_segments


@contextmanager
def opened(product: Product) -> Iterator[Site]:
    with Home.open(product.home, clock=lambda: product.now) as home:
        site = Site(home, "production")
        try:
            yield site
        finally:
            site.close()


def product_members(site: Site, sid: int) -> tuple[set[Profile], int]:
    """The members whose IDs the model can foretell, and how many there are in all."""
    _, world = site.current()
    found: set[Profile] = set()
    count = 0
    for name in world.namespaces("members"):
        namespace = int(name.removeprefix("members/"))
        kind = "customer" if namespace else "device"
        for ordinal in world.members(namespace).members(sid):
            found.add((kind, namespace, world.ids(namespace).name(ordinal).decode()))
            count += 1
    return found, count


def differences(product: Product, model: ModelInstallation, segments: list[Segment]) -> list[str]:
    found = []
    with opened(product) as site:
        for segment in segments:
            right = members(model.model, segment, model.now)
            there, count = product_members(site, segment.sid)
            # the IDs of devices made for unseen DAIDs are drawn: they are counted only
            named = {profile for profile in right if ":" not in profile[2]}
            drawn = {profile for profile in there if profile[0] == "device" and profile not in named}
            if count != len(right) or not named <= there or len(drawn) != len(right) - len(named):
                found.append(f"{segment.sid} {segment.merge.kind} {segment.rule.text}: {there}, model {right}")
    return found


def walk(seed: int, length: int, folder: Path) -> list[str]:
    rng = Random(seed)
    world = random_world(rng)
    segments = random_segments(rng, world)
    model = ModelInstallation(world.workspace, world.limits)
    product = Product(folder, with_segments(world.workspace, segments), world.limits)
    numbers: dict[int, int] = {}
    jobs = [list(job.files) for job in model.jobs]
    for number, (distance, step) in enumerate(random_steps(rng, world, model.model, jobs, length)):
        model.now += distance
        product.now = model.now
        before = len(model.jobs)
        if step.action == "apply":
            assert step.workspace is not None
            model.apply(step.workspace)
            product.apply(with_segments(step.workspace, segments))
        else:
            assert take(step, product, model, numbers) == []
        jobs[:] = [list(job.files) for job in model.jobs]
        text = f"seed {seed}, step {number} ({step.action} {[name for name, _ in step.files]})"
        # what runs at all brings everybody whose traits it changed, or time did, up to date
        ran = step.action in ("undo", "redo") or any(
            job.receipt["status"] == "processed" for job in model.jobs[before:]
        )
        if ran and (found := differences(product, model, segments)):
            return [f"{text}, at once:", *found]
        if rng.random() < 0.6 or number == length - 1:
            with opened(product) as site, Lease(site) as lease:
                evaluate_all(site, lease)
            if found := differences(product, model, segments):
                return [f"{text}, evaluated:", *found]
    with opened(product) as site:
        report = check(site, False)
    return [f"check: {one.part}: {one.text}" for one in report.differences]


@pytest.mark.rule("QL-904", "QL-906", "QL-1002", "QL-1005", "QL-1006", "QL-1008", "QL-1015", "QL-1018")
@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(3, 8))])
def test_members_are_those_of_the_model(seed: int, tmp_path: Path) -> None:
    assert walk(seed, 10, tmp_path / "home") == []


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 250))
def test_members_are_those_of_the_model_at_length(seed: int, tmp_path: Path) -> None:
    assert walk(seed, 25, tmp_path / "home") == []
