"""Every rule, in the order in which its problems are told."""

from __future__ import annotations

from spikeprune.config.schema import Config
from spikeprune.config.validation import compression, networks, resources, stages
from spikeprune.config.validation.values import values
from spikeprune.errors import Problem

COMBINATIONS = (
    networks.teacher,
    networks.student,
    resources.data,
    stages.order,
    stages.rows,
    compression.rules,
    networks.early_answers,
    resources.devices,
)


def problems(config: Config, unread: frozenset[str] = frozenset()) -> list[Problem]:
    """`unread`: keys whose given value had the wrong type, so that the configuration holds another one."""
    found = [(keys, text) for keys, text in values(config) if not unread & set(keys)]
    bad = unread | {keys[0] for keys, _ in found}
    for rule in COMBINATIONS:
        # A combination of values that are wrong on their own would be reported twice.
        found += [(keys, text) for keys, text in rule(config) if not bad & set(keys)]
    return found


def validate(config: Config) -> list[str]:
    """Every value and combination that cannot work, one sentence each; empty when all is well."""
    return [text for _, text in problems(config)]
