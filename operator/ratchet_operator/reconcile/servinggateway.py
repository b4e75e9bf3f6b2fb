"""What a PolicyDeployment's HTTPRoute is to have, against what it has: a step's part in the user's gateway.

The ledger names the route before it gets a share of ours, and until it is known to have none: another name in
the spec, or none, first gives back the one before.
"""

from dataclasses import dataclass

from ratchet_operator.build.gateway import Found, Ours, Share, is_in_force, obstacle, patch_to
from ratchet_operator.conditions import Verdict, unknown
from ratchet_operator.kinds import HTTP_ROUTE, Json, name_of, namespace_of, sub
from ratchet_operator.plan import Amend
from ratchet_operator.rollout.book import Book
from ratchet_operator.rollout.routes import beside
from ratchet_operator.rollout.values import Split, Wanted


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of an HTTPRoute.

    Attributes:
        name: of the route.
        share: that it is to have; None: it is to be as the user wrote it.
        is_named: whether the spec names it, and not only the ledger.
        is_noted: whether the ledger does.

    """

    name: str
    ours: Ours
    share: Share | None
    is_named: bool
    is_noted: bool


@dataclass(frozen=True, slots=True)
class Looked:
    """What was found where something is asked."""

    asked: Asked
    found: Found

    @property
    def is_followed(self) -> bool:
        """Whether the gateway is known to do what is asked. Nothing is known of a route that had no share of
        ours, nor needs to be.
        """
        asked = self.asked
        return not (asked.is_noted or self.amendment) or is_in_force(self.found, asked.ours, asked.share)

    @property
    def amendment(self) -> Amend | None:
        """What is to be changed."""
        asked, route = self.asked, self.found.route
        operations = () if route is None else patch_to(route, asked.ours, asked.share)
        if not operations or (asked.share is not None and self.obstacle is not None):
            return None
        share = asked.share
        why = f"{share.percent}% to {share.service}" if share is not None else "nothing to an arm alone"
        return Amend(HTTP_ROUTE, asked.ours.namespace, asked.name, operations, why)

    @property
    def obstacle(self) -> Verdict | None:
        """Why no trial can have a share."""
        if not self.asked.is_named:
            return unknown("GatewayChanges", f"HTTPRoute {self.asked.name} is given back first.")
        return obstacle(self.found, self.asked.ours)


def asked_of(obj: Json, book: Book) -> Asked | None:
    """What a PolicyDeployment asks of its HTTPRoute now; None where it has none."""
    named = _named(obj)
    name = book.gateway or named
    if name is None:
        return None
    ours = Ours(namespace_of(obj), name_of(obj))
    share = beside(book.state, book.routed.split)
    is_asked = share is not None and book.gateway is not None and name == named
    return Asked(
        name,
        ours,
        Share(ours.arm(share[0]), share[1]) if share is not None and is_asked else None,
        is_named=name == named,
        is_noted=book.gateway is not None,
    )


def not_looked(asked: Asked) -> Looked:
    """Before anybody has looked for what is asked now."""
    why = unknown("GatewayUnknown", f"Nobody has looked for HTTPRoute {asked.name} yet.")
    return Looked(asked, Found(asked.name, why=why))


def noted(obj: Json, book: Book, wanted: Wanted, followed: Split | None) -> str | None:
    """The HTTPRoute that the ledger is to name from this step on.

    Args:
        obj: the PolicyDeployment.
        book: before this step.
        wanted: of this step.
        followed: the split of the book, where servers and gateway follow it.

    """
    named, share = _named(obj), beside(wanted.state, wanted.split)
    if book.gateway is None:
        return named if share is not None else None
    is_given_back = followed is not None and (
        book.gateway != named or beside(book.state, book.routed.split) is None
    )
    return book.gateway if not is_given_back or (share is not None and book.gateway == named) else None


def _named(obj: Json) -> str | None:
    return sub(obj, "spec", "traffic", "gateway", "httpRouteRef").get("name")
