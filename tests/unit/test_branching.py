"""Branch and bound: proven within a few vertices, or given up."""

from __future__ import annotations

from dataclasses import dataclass, field

from slurm_mig.core.planning.branching import Bounds, UnclearError, Vertex, search


@dataclass
class Knapsack:
    """Worth the most within a weight; its relaxation takes things by worth for weight."""

    worth: list[int]
    weight: list[int]
    most: int
    asked: int = 0
    fails_at: int = 0
    known: list[Bounds] = field(default_factory=list)

    def best(self, bounds: Bounds) -> Vertex | None:
        self.asked += 1
        if self.asked == self.fails_at:
            raise UnclearError
        limits = [bounds.get(n, (0.0, 1.0)) for n in range(len(self.worth))]
        values = [low for low, _ in limits]
        left = self.most - sum(v * w for v, w in zip(values, self.weight, strict=True))
        if left < 0 or any(low > high for low, high in limits):
            return None
        for n in sorted(range(len(values)), key=lambda n: -self.worth[n] / self.weight[n]):
            more = min(limits[n][1] - values[n], left / self.weight[n])
            values[n] += more
            left -= more * self.weight[n]
        return Vertex(-sum(v * w for v, w in zip(values, self.worth, strict=True)), values)


def solved(of: Knapsack, most: int = 1000, gap: float = 0.0) -> list[float] | None:
    count = len(of.worth)
    return search(of, [1.0] * count, [True] * count, gap, most)


def test_a_whole_vertex_is_the_answer() -> None:
    of = Knapsack([6, 5], [1, 1], 2)
    assert solved(of) == [1, 1]
    assert of.asked == 1


def test_the_best_of_all() -> None:
    """Worth for weight alone would take the first two."""
    of = Knapsack([60, 100, 120], [10, 20, 30], 50)
    assert solved(of) == [0, 1, 1]


def test_what_is_not_proven_within_the_vertices_is_not_known() -> None:
    worth = [2 * n + 1 for n in range(20, 40)]
    of = Knapsack(worth, [n + 3 for n in range(20, 40)], 400)
    assert solved(of, most=5) is None
    assert of.asked == 5


def test_what_the_relaxation_cannot_solve_is_not_known() -> None:
    assert solved(Knapsack([60, 100, 120], [10, 20, 30], 50, fails_at=2)) is None


def test_an_answer_within_the_share_will_do() -> None:
    of = Knapsack([1000, 1001, 999], [10, 10, 10], 25)
    exact, near = Knapsack([1000, 1001, 999], [10, 10, 10], 25), of
    assert solved(exact) == [1, 1, 0]
    found = solved(near, gap=0.5)
    assert found is not None
    assert sum(v * w for v, w in zip(found, of.worth, strict=True)) >= 0.5 * 2001
    assert near.asked <= exact.asked


def test_columns_that_need_not_be_whole_are_not_branched_on() -> None:
    of = Knapsack([60, 100, 120], [10, 20, 30], 50)
    found = search(of, [1.0] * 3, [False] * 3, 0.0, 1)
    assert found == [1, 1, 20 / 30]
    assert of.asked == 1
