"""What can go wrong on the job side. A user's mistake is a settings.ConfigError; these are the cluster's."""


class SlurmError(Exception):
    """Base: something about Slurm or a run folder failed; the message is one line."""

    exit_code = 1


class CommandFailed(SlurmError):
    """A Slurm command ended with an error; the message holds Slurm's own words."""


class RendezvousFailed(SlurmError):
    """The ranks could not find each other; the message names the rule that failed."""
