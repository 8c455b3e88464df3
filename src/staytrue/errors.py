"""Everything staytrue can refuse, and nothing else.

    StaytrueError             the root: its message is a sentence with a way out
    ├── RequestError          what was asked cannot be done (exit code 2)
    │   ├── DataError         a data file is not what it should be
    │   ├── RecipeError       a recipe, a defense's name or one of its fields
    │   └── ModelError        a model or adapter folder cannot be used, or not with these defenses
    ├── SeamError             a trainer did something that the seam cannot guard (exit code 1)
    └── TrainingError         training ended in something that is no model (exit code 1)

Each is also the standard exception it refines, so `except ValueError` works where a reader expects it.
A message says what, where (file, line, key), the value, and what to do instead.
"""


class StaytrueError(Exception):
    """Root of every error that staytrue raises on purpose."""


class RequestError(StaytrueError, ValueError):
    """The request cannot be carried out as it stands; the message names the way out."""


class DataError(RequestError):
    """A data file is malformed; the message holds line numbers and JSON pointers."""


class RecipeError(RequestError):
    """A recipe, a defense's name, or one of a defense's fields is wrong."""


class ModelError(RequestError):
    """A model or adapter cannot be loaded, or does not fit the defenses that were asked for."""


class TrainingError(StaytrueError, RuntimeError):
    """Training ran and did not give a usable model."""


class SeamError(StaytrueError, RuntimeError):
    """A trainer's loss made no forward, or more than one: guarding the wrong thing would be worse."""
