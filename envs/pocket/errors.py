"""The one error of the pocket cluster."""


class PocketError(Exception):
    """One line for a person: what happened, where, what to do."""
