"""What can go wrong on the job side. A user's mistake is a settings.ConfigError; these are the cluster's."""


class SlurmError(Exception):
    """Base: something about Slurm or a run folder failed; the message is one line."""

    exit_code = 1


class CommandFailed(SlurmError):
    """A Slurm command ended with an error; `words` are Slurm's own."""

    def __init__(self, message: str, words: str = "") -> None:
        super().__init__(message)
        self.words = words


class ControllerAway(CommandFailed):
    """The controller did not answer. `sent`: what was asked of it may have reached it and may still happen."""

    def __init__(self, message: str, words: str = "", sent: bool = True) -> None:
        super().__init__(message, words)
        self.sent = sent


class RendezvousFailed(SlurmError):
    """The ranks could not find each other; the message names the rule that failed."""
