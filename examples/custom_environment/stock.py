"""An environment of one's own: a warehouse whose boxes a student counts shelf by shelf."""

import random

from opd_ray.environments.environment import ToolResult

COLOURS = ("red", "green", "blue", "black")


def rows(count: int) -> list[dict[str, object]]:
    """The prompts; their other columns are what the environment is reset to."""
    asked = "Order {}: how many {} boxes are there? Look at every shelf, then report."
    return [
        {"prompt": asked.format(n, COLOURS[n % 4]), "order": n, "colour": COLOURS[n % 4]}
        for n in range(count)
    ]


class Stock:
    """Every public method is a tool; reset and get_reward are for the run."""

    def reset(self, order: int, colour: str) -> str:
        rng = random.Random(order)
        self.shelves = [{c: rng.randint(0, 9) for c in COLOURS} for _ in range(rng.randint(2, 4))]
        self.wanted = sum(shelf[colour] for shelf in self.shelves)
        self.reported: int | None = None
        return f" There are {len(self.shelves)} shelves."

    def look(self, shelf: int) -> dict[str, int]:
        """Tells how many boxes of each colour are on a shelf.

        Args:
            shelf: its number, from 1.
        """
        if not 1 <= shelf <= len(self.shelves):
            raise ValueError(f"there is no shelf {shelf}")  # the student reads it
        return self.shelves[shelf - 1]

    def report(self, count: int) -> ToolResult:
        """Reports the number of boxes and ends the work.

        Args:
            count: of all shelves together.
        """
        self.reported = count
        return ToolResult("Thank you.", done=True)

    def get_reward(self) -> float:
        return float(self.reported == self.wanted)
