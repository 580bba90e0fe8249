"""Drains: answered calls go to the tables, so that files, reports and exports see them (design 2.7).

A drain takes calls in the order in which they were answered, as far as they may stand in one load: of one UTC day, and
no visitor realises anything after an earlier call of the same portion, so that who was a member when calling shows
(QL-1104).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence

from sqlalchemy import func, select

from openaudience.calls.model import Call
from openaudience.catalog.ledger import LoadRow, put_counter
from openaudience.runs import faults
from openaudience.runs.loads import CALLS
from openaudience.runs.membership import Memberships
from openaudience.runs.portions import Portion
from openaudience.runs.settling import Plan, Settler
from openaudience.runs.site import DAY, DRAINED, Lease, Site
from openaudience.runs.world import DEVICES, Draft
from openaudience.store.parts import Part

MOST_CALLS = 100_000
MOST_PORTIONS = 16
"""So many portions are cut for the sake of QL-1104 alone in one drain; what is left then is taken as it comes."""
FIRST_PORTIONS, PORTIONS_A_DAY = 64, 400
"""None is cut for it while the calls of a UTC day came to more portions than the first, and its part of the others: all
runs read all loads, and visitors who come again all day long would make thousands of them."""

Profile = tuple[int, str]
"""(namespace, ID): a device (0, UUID), or a customer ID."""


def waiting_calls(site: Site) -> int:
    """How many answered calls are not in the tables yet. Beta's never get there (RT-2104)."""
    if site.beta:
        return 0
    # the store first: whatever is drained since is not counted then
    newest = site.calls.newest()
    if not newest:
        return 0
    return max(0, newest - site.drained())


def portion_size(calls: Sequence[tuple[int, Call]], watched: frozenset[int], *, cut: bool) -> int:
    """How many of the calls, from the first on, may stand in one load; at least one.

    ``watched``: traits that segments depend on. ``cut``: whether to stop where membership may change for somebody
    who called already.
    """
    day = calls[0][1].at // DAY
    seen: set[Profile] = set()
    for count, (_, call) in enumerate(calls):
        if call.at // DAY != day:
            return count
        who = _profiles(call)
        if cut and count:
            changing = call.optouts or any(one.sid in watched for one in call.realized)
            if changing and not seen.isdisjoint(who):
                return count
        seen.update(who)
    return len(calls)


def _profiles(call: Call) -> list[Profile]:
    device = [(DEVICES, call.uuid)] if call.uuid else []
    return [*device, *((one.dpid, one.id) for one in call.customers), *((one.dpid, one.id) for one in call.optouts)]


def _few(site: Site, at: int) -> bool:
    """Whether the portions of the UTC day of an instant are few, for the part of the day that is over."""
    day, second = divmod(at, DAY)
    count = func.count(LoadRow.evaluation.distinct())
    of_calls = LoadRow.environment == site.name, LoadRow.kind == CALLS
    with site.reading() as session:
        portions = session.scalar(select(count).where(*of_calls, LoadRow.at >= day * DAY, LoadRow.at < (day + 1) * DAY))
    return (portions or 0) < FIRST_PORTIONS + PORTIONS_A_DAY * second // DAY


def drain(
    site: Site,
    memberships: Memberships,
    settler: Settler,
    lease: Lease,
    commit: Callable[[Iterable[Part]], None],
    write: Callable[[Draft, int], None],
    stop: Callable[[], bool],
) -> int:
    """Brings the calls that were answered by now into the tables; gives how many. Calls that come meanwhile wait.

    ``commit``, ``write``: the applier's steps 6 and 7. ``stop`` is asked between portions whether to leave the rest.
    """
    if site.beta:
        return 0
    upto = site.calls.newest()
    done = site.drained()
    oldest = site.calls.log(0, 1, signals=False)
    if oldest and oldest[0][0] <= done:
        # a crash came between a decision and the clearing up
        site.calls.settle(done)
    count = portions = 0
    calls: list[tuple[int, Call]] = []
    while done < upto and not stop():
        if not calls:
            most = min(MOST_CALLS, upto - done)
            calls = [one for one in site.calls.log(done, most, signals=False) if one[0] <= upto]
        if not calls:
            # the last ones could not be read, and wait no more
            with site.writing() as session:
                lease.check(session)
                put_counter(session, site.name, DRAINED, upto + 1)
            break
        watched = frozenset(memberships.definitions().dependants)
        cut = portions < MOST_PORTIONS and _few(site, calls[0][1].at)
        some = portion_size(calls, watched, cut=cut)
        one = Portion(site, memberships, calls[:some])
        one.apply()
        faults.reach("drain.applied")
        commit(one.rows.finish())
        one.judge()
        faults.reach("drain.judged")
        commit(one.rows.finish())
        write(one.draft, one.at)
        with site.writing() as session:
            lease.check(session)
            one.decide(session, Plan(generation=one.draft.number), settler)
        faults.reach("drain.decided")
        settler.recover()
        site.calls.settle(one.upto)
        shutil.rmtree(site.environment.work / "drain", ignore_errors=True)
        done, calls = one.upto, calls[some:]
        count += some
        portions += 1
    return count
