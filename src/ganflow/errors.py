"""The one exception that stands for a mistake which the user can put right."""


class UserError(Exception):
    """A mistake of the user's: the message names the thing, what is wrong and what would be right.

    The command line prints the message alone on stderr and exits with status 2.
    """
