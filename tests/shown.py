"""`Shown`: a progress that keeps what it is called with."""


class Shown:
    """Keeps, in order, a (total, unit) for each begin and the number of each step."""

    def __init__(self, seen=None):
        self.seen = [] if seen is None else seen

    def begin(self, total, unit="step", done=0):
        self.seen.append((total, unit))

    def step(self, number, metrics):
        self.seen.append(number)
