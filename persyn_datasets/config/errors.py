"""The two ways in which a build can end badly."""


class InputError(ValueError):
    """Something the user gave is wrong: says where, what was found, what was expected and how to
    fix it.
    """


class BuildError(RuntimeError):
    """The input was right and the build still could not be finished: says why and what has been
    kept.
    """
