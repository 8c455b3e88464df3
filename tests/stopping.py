"""`Stopping`: progress that ends a training at a step, as Ctrl-C would."""


class Stopping:
    """Progress of `train` and `resume`."""

    def __init__(self, at):
        self.at = at

    def begin(self, steps):
        pass

    def step(self, step, numbers):
        if step == self.at:
            raise KeyboardInterrupt
