"""Which variants of a test run by default. The others are slow: `make test-all` runs them too.

Above the engine a method is a name that is handed down, so that two stand for all of them: decoupled WSAM, which has
a term for after the step, and XSAM with the most climbs, which has replays, a search and state.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import pytest

USUALLY = "usually(pattern): of the test's variants, those whose id the regular expression finds run by default"
ABOVE_THE_ENGINE = {"training", "modes", "sharing", "measure"}

METHOD = re.compile(r"(?<![a-z_])(a?sam|wsam-coupled|wsam-decoupled|xsam)(-k\d)?(?![a-z_])")


def stand_ins(names: Iterable[str]) -> set[str]:
    """Of names that differ in the method alone, those whose methods stand for the others; all of the rest.

    Args:
        names: ids of one test's variants, such as `xsam-k3-adamw`.
    """
    alike = defaultdict(dict)
    for name in names:
        found = METHOD.search(name)
        method = (found[1], found[2] or "") if found else ("", "")
        alike[METHOD.sub("*", name, count=1)][method] = name
    return {name for variants in alike.values() for name in _chosen(variants)}


def _chosen(variants: dict[tuple[str, str], str]) -> Iterable[str]:
    named = {method for method, _ in variants}
    if "wsam-decoupled" not in named:
        return variants.values()
    second = "xsam" if "xsam" in named else "sam"
    climbs = {"wsam-decoupled": min, second: max}
    return {variants[m, pick(k for n, k in variants if n == m)] for m, pick in climbs.items() if m in named}


def mark_slow(items: Iterable[pytest.Item]) -> None:
    """Mark the variants that do not run by default: by the marker `usually`, else in folders above the engine."""
    tests = defaultdict(dict)
    for item in items:
        _, found, variant = item.name.partition("[")
        if found:
            tests[item.nodeid.partition("[")[0]][variant.removesuffix("]")] = item
    for variants in tests.values():
        item = next(iter(variants.values()))
        marker = item.get_closest_marker("usually")
        if marker is not None:
            chosen = {name for name in variants if re.search(marker.args[0], name)}
        elif ABOVE_THE_ENGINE & set(item.path.parts):
            chosen = stand_ins(variants)
        else:
            continue
        for name in variants.keys() - chosen:
            variants[name].add_marker(pytest.mark.slow)
