"""All task families, in the order in which reports list them."""

from penstock.lab.tasks import (
    arithmetic,
    closed,
    conversation,
    extraction,
    facts,
    identity,
    lists,
    numerals,
    sentiment,
    sequences,
    statements,
    steering,
)
from penstock.lab.tasks.task import Family

FAMILIES: tuple[Family, ...] = (
    *arithmetic.FAMILIES,
    *numerals.FAMILIES,
    *lists.FAMILIES,
    *sequences.FAMILIES,
    *extraction.FAMILIES,
    *sentiment.FAMILIES,
    *facts.FAMILIES,
    *closed.FAMILIES,
    *identity.FAMILIES,
    *conversation.FAMILIES,
    *steering.FAMILIES,
)
# Families that join in the last phase of training.
LATE_FAMILIES: tuple[Family, ...] = statements.FAMILIES
# What a held-out suite consists of.
SCORED: tuple[Family, ...] = tuple(family for family in (*FAMILIES, *LATE_FAMILIES) if family.scored)
BY_NAME: dict[str, Family] = {family.name: family for family in (*FAMILIES, *LATE_FAMILIES)}
