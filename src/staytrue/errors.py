"""The errors that staytrue raises on purpose, and the kind of its warnings.

    StaytrueError             the root: its message is a sentence with a way out
    ├── RequestError          a request that cannot be carried out (exit code 2)
    │   ├── DataError         a malformed data file
    │   ├── RecipeError       a recipe, a defense's name or one of its fields
    │   ├── ModelError        a model or adapter folder that cannot be used, or not with these defenses
    │   └── FolderInUseError  a folder into which another process writes now
    ├── ForwardPassError      a trainer whose forward passes cannot be guarded (exit code 1)
    └── TrainingError         training that ended without a usable model (exit code 1)

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
    """A model or adapter cannot be loaded, or does not fit the defenses."""


class FolderInUseError(RequestError):
    """Another process writes into the folder now."""


class TrainingError(StaytrueError, RuntimeError):
    """Training ended without a usable model."""


class ForwardPassError(StaytrueError, RuntimeError):
    """A trainer's loss called the model not exactly once, so penalties would be computed on the wrong forward pass."""


class StaytrueWarning(UserWarning):
    """A warning of staytrue: a sentence with a way out, which the command line prints as it stands."""
