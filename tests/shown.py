"""`Shown`: a progress that keeps what it is called with."""


class Shown:
    """Keeps, in order, a (total, unit) for each begin and the number of each step."""

    def __init__(self):
        self.seen = []

    def begin(self, total, unit="step"):
        self.seen.append((total, unit))

    def step(self, number, metrics):
        self.seen.append(number)
