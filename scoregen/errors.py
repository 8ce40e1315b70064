"""The one exception that is meant for the person at the keyboard."""


class UsageError(Exception):
    """Something outside the program is wrong, and the person running it can mend it.

    The message is one line that says what is wrong and what to do. The command line prints it
    without a traceback and exits with code 2; in a notebook it reads like any other exception.

    >>> raise UsageError("no file points.npy: pass its path with --config.data.dir")
    Traceback (most recent call last):
    scoregen.errors.UsageError: no file points.npy: pass its path with --config.data.dir
    """
